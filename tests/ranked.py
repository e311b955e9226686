"""Real gloo processes for tests: `launch(world, function, ...)` runs one function on every rank.

They are forked from a server that has imported torch once, so that a launch costs tenths of a second. What the
functions train is here as well: a tiny hybrid, dense or with experts, on a stream of packed documents.
"""

import hashlib
import json
import math
import multiprocessing
import os
import socket
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver

import torch
from torch.distributed.tensor import DTensor

from headwater.config import Attention, Config, Ffn, Moe, Rope, ShortConv, stack
from headwater.data.pack import Document, PackedBatches
from headwater.model import Lfm2
from headwater.objectives.distill import distill
from headwater.objectives.next_token import next_token
from headwater.train.balance import Balance
from headwater.train.loop import Plan, run_head, train
from headwater.train.optim import adamw
from headwater.train.parallel import Ranks
from headwater.train.ranks import SOLO
from headwater.train.schedule import Cosine

VOCAB = 61
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ranked", "torch._dynamo"])


def launch(world, function, *arguments, kill=None, timeout=900):
    """[result of each rank]; None if `kill()` became true before they ended: all are killed (SIGKILL) then.

    AssertionError with the traceback of the first rank that failed.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pipes, processes = [], []
    _start_server()
    for rank in range(world):
        mine, theirs = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_enter, args=(rank, world, port, theirs, function, arguments), daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    try:
        return _collect(pipes, processes, time.monotonic() + timeout, kill or (lambda: False))
    finally:
        for process in processes:
            process.kill()  # SIGKILL; nothing happens to one that has ended
            process.join()


def _start_server():
    """The server's Python finds modules where this one does (it ignores the path it is told, before 3.12)."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _collect(pipes, processes, deadline, kill):
    results = [None] * len(pipes)
    waiting = dict(enumerate(pipes))
    while waiting:
        ready = connection.wait(waiting.values(), 0.01)
        if kill():
            return None
        assert ready or time.monotonic() < deadline, "the ranks gave no answer in time"
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
            p.mul_(1.5 if p.ndim > 1 else 1.0)  # default weights are too small to show errors
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


def taught(start, stop):
    """Columns of a made-up teacher: five words a position, distinct, with a tail."""
    at = torch.arange(start, stop)[:, None]
    ids = (at * 7 + torch.arange(5) * 11) % VOCAB
    logprobs = (torch.sin(at * 1.3 + torch.arange(5)) - 1).log_softmax(-1) + math.log(0.9)
    return {"teacher_ids": ids, "teacher_logprobs": logprobs}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: how the ranks stand (None: one process without them), the model, the data, the plan."""

    mesh: dict | None = None
    model: dict = field(default_factory=dict)
    batches: dict = field(default_factory=dict)
    plan: dict = field(default_factory=lambda: {"steps": 4})
    distilled: bool = False
    balanced: bool = False
    plain_steps: bool = False  # SGD with rate 1 and no bound: the step is the gradient
    products: torch.dtype | None = None
    recompute: bool = False
    lr: float = 1e-2
    empty_rows: tuple[int, ...] = ()  # rows of every batch without a target
    identity: dict = field(default_factory=dict)


class Emptied:
    """Batches of which some rows have nothing to learn; without `share`, as an iterator from elsewhere."""

    def __init__(self, batches, rows):
        self._batches, self._rows = batches, list(rows)
        self.state_dict, self.load_state_dict = batches.state_dict, batches.load_state_dict

    def __next__(self):
        batch = next(self._batches)
        batch["loss_mask"][self._rows] = False
        return batch


class Log:
    """One line an update and rank: step, loss (exact), the rows that this rank read for it."""

    every_rank = True

    def __init__(self, path, rows):
        self._file, self._rows = path.open("a"), rows

    def __call__(self, step):
        line = {
            "step": step.done.step,
            "loss": step.done.metrics["loss"].hex(),
            "rows": [row for rows in self._rows for row in rows],
        }
        self._rows.clear()
        print(json.dumps(line), file=self._file, flush=True)


def run(job, checkpoint=None, hooks=(), objective=None, log=None):
    """A job's metrics, gradient norms, rows read, and whole weights at its end (on the first rank)."""
    model = make_model(**job.model)
    model.recompute = job.recompute
    batches = make_batches(**job.batches, columns=taught if job.distilled else None)
    objective = objective or (distill if job.distilled else next_token)
    if job.empty_rows:
        batches = Emptied(batches, job.empty_rows)
    out = {"steps": [], "rows": [], "bytes": 0}

    def forward(model, batch):
        if model.training:
            out["rows"].append(row_hashes(batch))
        return run_head(model, batch)

    with nullcontext() if job.mesh is None else Ranks(**job.mesh) as ranks:
        if ranks is not None:
            ranks.shard(model, products=job.products)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0) if job.plain_steps else adamw(model, lr=job.lr)
        hooks = [*hooks, *([Balance(model, rate=0.01)] if job.balanced else [])]
        hooks.append(lambda s: out["steps"].append((s.done.metrics, s.gradient_norm, s.done.tokens)))
        if log is not None:
            hooks.append(Log(log.with_suffix(f".{0 if ranks is None else ranks.rank}"), out["rows"]))
        result = train(
            model, batches, objective, optimizer, Cosine(steps=40, warmup=2),
            plan=Plan(**({"clip": math.inf} if job.plain_steps else {}), **job.plan), forward=forward, hooks=hooks,
            checkpoint=checkpoint, identity=job.identity, ranks=ranks or SOLO,
        )  # fmt: skip
        out["resumed_at"] = result.resumed_at
        if model.context is not None:
            out["bytes"] = model.context.bytes
        held = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in model.state_dict().items()}
        out["weights"] = {name: t.numpy() for name, t in held.items()} if ranks is None or ranks.first else None
    return out


def run_all(jobs):
    """On a rank: every job over one process group."""
    torch.distributed.init_process_group("gloo")
    out = [run(job) for job in jobs]
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return out
