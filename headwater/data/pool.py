"""A function over tasks in several processes, results as they come. Small on purpose: what a crash leaves is clear.

Workers are started afresh ("spawn"), hold one end of one pipe each, and leave when the other end is gone, so none
outlives a killed parent for longer than its task. Ctrl-C reaches the parent alone, which ends the workers.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

Task = tuple[Any, ...]
Function = Callable[..., Any]


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of a task (killed, out of memory, or a crash in native code). task: its
    number.
    """

    def __init__(self, message: str, task: int) -> None:
        super().__init__(message)
        self.task = task


def run_tasks(function: Function, tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Any]]:
    """(number of the task, result) of function(*task) as each is done. `function` must be importable by name.

    workers=0 runs in this process, in order. An error of a task is raised here with its type and text; the other
    workers are stopped. ValueError for a negative number.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}; 0 means this process alone, otherwise that many processes")
    if workers == 0 or len(tasks) == 0:
        yield from ((number, function(*task)) for number, task in enumerate(tasks))
        return
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[SpawnProcess, int]] = {}
    waiting = iter(range(len(tasks)))
    try:
        for number in _first(waiting, workers):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(function, there), daemon=True)
            with _one_thread_each():
                process.start()
            there.close()  # the worker holds the only other end
            _send(here, tasks[number], process, number)
            running[here] = (process, number)
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, number = running[ready]
                result = _receive(ready, process, number)
                following = next(waiting, None)
                if following is None:
                    del running[ready]
                    ready.close()
                    process.join()
                else:
                    _send(ready, tasks[following], process, following)
                    running[ready] = (process, following)
                yield number, result
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started in here use one thread for matrix products: there is one process a core already."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: "false" if name.startswith("TOKEN") else "1" for name in names})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _first(numbers: Iterator[int], count: int) -> list[int]:
    return [number for _, number in zip(range(count), numbers, strict=False)]


def _send(connection: Connection, task: Task, process: BaseProcess, number: int) -> None:
    try:
        connection.send(task)
    except (BrokenPipeError, ConnectionResetError) as e:  # it died between two tasks
        raise _died(process, number) from e


def _receive(connection: Connection, process: BaseProcess, number: int) -> Any:
    try:
        done, value = connection.recv()
    except (EOFError, ConnectionResetError) as e:
        raise _died(process, number) from e
    if done:
        return value
    raise value


def _died(process: BaseProcess, number: int) -> WorkerDied:
    process.join()
    return WorkerDied(
        f"a worker process ended with code {process.exitcode} in task {number} (-9: killed, perhaps for lack of "
        "memory); what is done is kept; cure: fewer workers, then run again with --resume",
        number,
    )


def _work(function: Function, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            os._exit(0)  # the parent is done, or dead
        try:
            answer = (True, function(*task))
        except Exception as e:
            answer = (False, _plain(e))
        try:
            connection.send(answer)
        except OSError:
            os._exit(1)


def _plain(error: Exception) -> Exception:
    """The error in a form that any process can rebuild."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    kind = next((k for k in (ValueError, ImportError, MemoryError) if isinstance(error, k)), RuntimeError)
    text = str(error) if kind is not RuntimeError else f"{type(error).__name__}: {error}"
    return kind(text)
