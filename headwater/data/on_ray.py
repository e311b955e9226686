"""The same units of work on Ray Data: one machine or many that share a file system. Same signature as pool.run_tasks.

Each task writes its unit into its place, as on one machine; what travels through Ray is the task and its few counts.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from headwater import optional
from headwater.data.pool import Function, Task


def run_tasks(function: Function, tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Any]]:
    """(number of the task, result) as each is done, on the cluster that RAY_ADDRESS names, else on a local one.

    workers: tasks at a time; 0: as many as the cluster has cores. An error of a task is raised here.
    """
    if not tasks:
        return
    ray, data = optional.load("ray", extra="ray"), optional.load("ray.data", extra="ray")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    data.DataContext.get_current().enable_progress_bars = False

    def work(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "result": function(*row["task"])}

    rows = data.from_items(
        [{"number": number, "task": list(task)} for number, task in enumerate(tasks)],
        override_num_blocks=len(tasks),
    )  # fmt: skip
    try:
        for row in rows.map(work, concurrency=workers or None).iter_rows():
            yield row["number"], row["result"]
    except ray.exceptions.RayTaskError as e:
        cause = e.cause if isinstance(e.cause, ValueError | OSError) else e
        raise type(cause)(*cause.args) if cause is not e else RuntimeError(str(e)) from e
