"""Real gloo processes for tests: `launch(world, function, ...)` runs one function on every rank.

They are forked from a server that has imported torch once, so that a launch costs tenths of a second. What the
functions train is here as well: a tiny hybrid, dense or with experts, on a stream of packed documents.
"""

import hashlib
import multiprocessing
import os
import signal
import socket
import time
import traceback

import torch

from headwater.config import Attention, Config, Ffn, Moe, Rope, ShortConv, stack
from headwater.data.pack import Document, PackedBatches
from headwater.model import Lfm2
from headwater.train.parallel import Ranks

VOCAB = 61
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ranked"])


def launch(world, function, *arguments, kill_after=None, timeout=900):
    """[result of each rank]; with kill_after: all are killed (SIGKILL) after so many seconds, None if it came to that.

    AssertionError with the traceback of the first rank that failed.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pipes, processes = [], []
    for rank in range(world):
        mine, theirs = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_enter, args=(rank, world, port, theirs, function, arguments), daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    try:
        results = _collect(pipes, processes, time.monotonic() + (kill_after if kill_after is not None else timeout))
        assert results is not None or kill_after is not None, f"no answer in {timeout} s"
        return results
    finally:
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()


def _collect(pipes, processes, deadline):
    results = [None] * len(pipes)
    waiting = dict(enumerate(pipes))
    while waiting:
        left = deadline - time.monotonic()
        ready = multiprocessing.connection.wait(waiting.values(), max(0.0, left))
        if not ready:
            return None
        for rank in [r for r, pipe in waiting.items() if pipe in ready]:
            try:
                ok, results[rank] = waiting.pop(rank).recv()
            except EOFError:
                processes[rank].join()
                ok, results[rank] = False, f"rank {rank} died with {processes[rank].exitcode}"
            assert ok, results[rank]
    return results


def _enter(rank, world, port, pipe, function, arguments):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        pipe.send((True, function(*arguments)))
    except BaseException:
        pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))
        os._exit(1)


def make_model(*, width=3, experts=0, dtype=torch.float32, seed=0):
    """Five layers of convolutions (width, and 7), full and windowed attention; with experts in the last four."""
    full = Attention(num_heads=4, num_kv_heads=2, head_dim=8, rope=Rope(theta=1e4))
    near = Attention(num_heads=4, num_kv_heads=2, head_dim=8, rope=Rope(theta=1e4), window=9)
    mixers = {"C": ShortConv(width=width), "W": ShortConv(width=7), "A": full, "N": near}
    dense = Ffn(intermediate_size=40)
    layers = stack("CAWNC", mixers, dense)
    if experts:
        sparse = Moe(num_experts=experts, num_experts_per_token=2, intermediate_size=24)
        layers = stack("C", mixers, dense) + stack("AWNC", mixers, sparse)
    config = Config(vocab_size=VOCAB, hidden_size=32, layers=layers, max_positions=256)
    model = Lfm2(config, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            p *= 1.5 if p.ndim > 1 else 1.0  # default weights are too small to show errors
    return model


def make_batches(*, rows=4, length=32, seed=0, columns=None):
    generator = torch.Generator().manual_seed(7)
    sizes = torch.randint(3, 40, (60,), generator=generator).tolist()
    documents = [Document(torch.randint(1, VOCAB, (n,), generator=generator).tolist()) for n in sizes]
    return PackedBatches(documents, rows=rows, length=length, seed=seed, pad_id=0, columns=columns)


def row_hashes(batch):
    """One short hash a row, of ids and segments."""
    pairs = zip(batch["input_ids"], batch["segment_ids"], strict=True)
    return [hashlib.sha256(ids.numpy().tobytes() + s.numpy().tobytes()).hexdigest()[:12] for ids, s in pairs]


__all__ = ["Ranks", "launch", "make_batches", "make_model", "row_hashes"]
