"""Requests to batches: who waits, who runs, and which pieces of which prompts the next run reads. Knows no model.

Users take turns (a user is whatever name came with a request): in the queue, and in every run's tokens, a block at a
time, so a long prompt or a user with many requests starves nobody. Pieces end at block boundaries wherever the prompt
does not end, so what is computed does not depend on who else is there. Times are those of time.monotonic.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

from headwater.records import field, record

BLOCK = 48
"""Tokens. Whole blocks of 16 positions of the cache and of 24 rows of the attention kernel."""


class QueueFull(RuntimeError):
    """No room for one more request; `retry_after` seconds are likely to change that."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests wait already; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class DeadlineExceeded(TimeoutError):
    """The request's time was over before its answer was."""


@record(eq=False)
class Job:
    """One request. `read` of its prompt's tokens are in its slot; `stop_at`: a piece must end there (or behind)."""

    id: int
    prompt: list[int]
    user: str
    reserve: int
    deadline: float | None = None
    payload: Any = None
    slot: int = -1
    read: int = 0
    stop_at: int = 0
    followers: list["Job"] = field(default_factory=list)

    @property
    def reading(self) -> bool:
        return self.read < len(self.prompt)


class Scheduler:
    """Jobs in order of their users' turns. reserve_limit: the sum of `reserve` over running jobs stays within it."""

    def __init__(self, *, slots: int, max_queue: int, reserve_limit: int) -> None:
        self.slots, self.max_queue, self.reserve_limit = slots, max_queue, reserve_limit
        self.running: list[Job] = []
        self._waiting: dict[str, deque[Job]] = {}
        self._turn: deque[str] = deque()
        self._reserved = 0
        self._served: dict[str, int] = {}  # tokens read for each user since its prompts began to be read

    def __len__(self) -> int:
        return len(self.running) + self.waiting

    @property
    def waiting(self) -> int:
        """Jobs without a slot."""
        return sum(map(len, self._waiting.values()))

    def check(self, job: Job) -> None:
        """ValueError when a job can never run."""
        if job.reserve > self.reserve_limit:
            raise ValueError(
                f"the request may grow to {job.reserve} tokens; all sequences together may hold {self.reserve_limit}: "
                "ask for fewer tokens or give the engine more memory"
            )

    def add(self, job: Job, *, first: bool = False, retry_after: float = 1.0) -> None:
        """Queue a job behind its user's others (first: before them). QueueFull; ValueError when it can never run."""
        self.check(job)
        if not first and self.waiting >= self.max_queue:
            raise QueueFull(self.waiting, retry_after)
        queue = self._waiting.get(job.user)
        if queue is None:
            queue = self._waiting[job.user] = deque()
            self._turn.append(job.user)
        if first:
            queue.appendleft(job)
        else:
            queue.append(job)

    def admit(self) -> Job | None:
        """The next job that there is room for, now running (its slot is the caller's to open), or None."""
        if not self._turn or len(self.running) >= self.slots:
            return None
        user = self._turn[0]
        job = self._waiting[user][0]
        if self._reserved + job.reserve > self.reserve_limit:
            return None  # and nobody overtakes, or a large request would wait for ever
        self._pop(user)
        self.start(job)
        return job

    def fits(self, job: Job) -> bool:
        return len(self.running) < self.slots and self._reserved + job.reserve <= self.reserve_limit

    def start(self, job: Job) -> None:
        """Count a job as running."""
        self.running.append(job)
        self._reserved += job.reserve

    def finish(self, job: Job) -> None:
        """Forget a running job."""
        self.running.remove(job)
        self._reserved -= job.reserve

    def drop(self, job: Job) -> None:
        """Forget a waiting job."""
        self._waiting[job.user].remove(job)
        if not self._waiting[job.user]:
            del self._waiting[job.user]
            self._turn.remove(job.user)

    def all(self) -> Iterable[Job]:
        """Every job, running and waiting."""
        return [*self.running, *(j for queue in self._waiting.values() for j in queue)]

    def pieces(self, budget: int) -> list[tuple[Job, int]]:
        """(job, tokens of its prompt) for one run of at most `budget` tokens: always a block for whoever had least."""
        readers: dict[str, deque[Job]] = {}
        for job in self.running:
            if job.reading:
                readers.setdefault(job.user, deque()).append(job)
        least = min((self._served[u] for u in readers if u in self._served), default=0)
        self._served = {u: self._served.get(u, least) for u in readers}
        given: dict[int, tuple[Job, int]] = {}
        while readers:
            user = min(readers, key=self._served.__getitem__)
            job = readers[user][0]
            have = given.get(job.id, (job, 0))[1]
            step = self._step(job, have)
            if step > budget:
                break
            budget -= step
            self._served[user] += step
            given[job.id] = (job, have + step)
            if not self._step(job, have + step):
                readers[user].popleft()  # nothing more of it in this run
                if not readers[user]:
                    del readers[user]
        return list(given.values())

    @staticmethod
    def _step(job: Job, given: int) -> int:
        """Tokens to the next block boundary or to the end of what this run may read."""
        at = job.read + given
        end = job.stop_at if job.read < job.stop_at else len(job.prompt)
        return min(end, (at // BLOCK + 1) * BLOCK) - at if at < end else 0

    def _pop(self, user: str) -> None:
        self._waiting[user].popleft()
        self._turn.popleft()
        if self._waiting[user]:
            self._turn.append(user)
        else:
            del self._waiting[user]


def reserve_limit(core: Any, kv_bytes: int | None) -> int:
    """Tokens that all sequences of a core may hold together in kv_bytes; ValueError when that is not even a block."""
    most = core.max_slots * core.capacity
    if kv_bytes is None or not core.bytes_per_token:
        return most
    tokens = (kv_bytes - core.max_slots * core.bytes_fixed) // core.bytes_per_token
    if tokens < BLOCK:
        raise ValueError(
            f"kv_bytes is {kv_bytes}; a sequence of {BLOCK} tokens does not fit: allow more, or fewer slots"
        )
    return min(most, tokens)
