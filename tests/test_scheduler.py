"""The scheduler alone: fair shares, block boundaries, reservations, room. No model."""

import random

import pytest

from headwater.engine.scheduler import BLOCK, Job, QueueFull, Scheduler


def job(i: int, length: int, user: str = "", reserve: int = 0) -> Job:
    return Job(i, [1] * length, user or f"#{i}", reserve or length)


def scheduler(slots: int = 8, **options) -> Scheduler:
    return Scheduler(**{"slots": slots, "max_queue": 100, "reserve_limit": 1 << 30, **options})


def read(s: Scheduler, budget: int) -> dict[int, int]:
    pieces = s.pieces(budget)
    for j, n in pieces:
        j.read += n
    return {j.id: n for j, n in pieces}


def test_a_long_prompt_starves_nobody():
    s = scheduler()
    s.add(job(0, 10_000))
    assert s.admit().id == 0
    read(s, 4 * BLOCK)
    for i in range(1, 4):
        s.add(job(i, 2 * BLOCK))
        s.admit()
    runs = 0
    while any(j.reading for j in s.running[1:]):
        read(s, 4 * BLOCK)
        runs += 1
    assert runs == 2


def test_newcomers_do_not_starve_a_long_prompt():
    s = scheduler(slots=100)
    long = job(0, 100 * BLOCK)
    s.add(long)
    s.admit()
    for i in range(1, 60):
        s.add(job(i, BLOCK))
        s.admit()
        read(s, 2 * BLOCK)
    assert long.read >= 50 * BLOCK


def test_users_share_whatever_their_number_of_requests():
    s = scheduler()
    for i in range(5):
        s.add(job(i, 40 * BLOCK, "greedy"))
    s.add(job(9, 40 * BLOCK, "modest"))
    while s.admit():
        pass
    total = {"greedy": 0, "modest": 0}
    for _ in range(10):
        for j, n in s.pieces(4 * BLOCK):
            total[j.user] += n
            j.read += n
    assert total["greedy"] == total["modest"]


def test_users_take_turns_in_the_queue():
    s = scheduler(slots=1)
    for i, user in enumerate(["a", "a", "a", "b", "c", "b"]):
        s.add(job(i, 5, user))
    order = []
    while (j := s.admit()) is not None:
        order.append(j.user)
        s.finish(j)
    assert order == ["a", "b", "c", "a", "b", "a"]


def test_pieces_end_at_blocks_and_where_they_are_told():
    rng = random.Random(0)
    s = scheduler(slots=40)
    for i in range(40):
        j = job(i, rng.randint(1, 700))
        j.stop_at = rng.randint(0, len(j.prompt) // BLOCK) * BLOCK
        s.add(j)
        s.admit()
    while any(j.reading for j in s.running):
        before = {j.id: j.read for j in s.running}
        given = read(s, rng.randint(1, 12) * BLOCK)
        assert given
        for j in s.running:
            assert j.read % BLOCK == 0 or j.read == len(j.prompt)
            assert not before[j.id] < j.stop_at < j.read


def test_room_is_reserved_and_nobody_overtakes():
    s = scheduler(reserve_limit=100)
    with pytest.raises(ValueError, match="may hold 100"):
        s.add(job(0, 5, reserve=101))
    for i, reserve in enumerate((60, 60, 10)):
        s.add(job(i, 5, reserve=reserve))
    first = s.admit()
    assert s.admit() is None
    s.finish(first)
    assert [s.admit().id, s.admit().id] == [1, 2]


def test_the_queue_has_an_end():
    s = scheduler(max_queue=2)
    s.add(job(0, 5))
    s.add(job(1, 5))
    with pytest.raises(QueueFull) as full:
        s.add(job(2, 5), retry_after=7.0)
    assert full.value.retry_after == 7.0
    s.add(job(3, 5), first=True)  # one that was in already
    assert s.waiting == 3
    s.drop(next(j for j in s.all() if j.id == 1))
    assert [j.id for j in s.all()] == [0, 3]
