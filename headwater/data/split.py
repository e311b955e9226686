"""Hold documents out for evaluation by a hash of their key, so the choice never depends on order, on other rows, or
on a seed.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def held_out(key: str, share: float) -> bool:
    """True for about `share` of all keys, and always for the same ones; a larger share holds out the same and more."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share is {share}; the part to hold out lies between 0 and 1")
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


def split(rows: Iterable[T], key: Callable[[T], str], share: float) -> tuple[list[T], list[T]]:
    """(train, held out), both in the order of `rows`. Rows with the same key (one document, or texts made from it)
    stay together.
    """
    train: list[T] = []
    held: list[T] = []
    for row in rows:
        (held if held_out(key(row), share) else train).append(row)
    return train, held
