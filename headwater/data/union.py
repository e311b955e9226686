"""Union-find over arrays: which documents hang together, given pairs of them. No Python loop over documents."""

import numpy as np


class UnionFind:
    """Sets of 0 .. size-1, each named by its smallest member; 8 bytes a document."""

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size, dtype=np.int64)

    def roots(self, items: np.ndarray | None = None) -> np.ndarray:
        """The name of the set of each item (of all, if None)."""
        self._flatten()
        return self._parent if items is None else self._parent[items]

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Put first[i] and second[i] into one set, for every i. The result does not depend on the order of pairs."""
        while len(first):
            self._flatten()
            one, two = self._parent[first], self._parent[second]
            apart = one != two
            first, second, one, two = first[apart], second[apart], one[apart], two[apart]
            # Each root hangs itself on the smallest root it meets; those left over meet again in the next round.
            np.minimum.at(self._parent, np.maximum(one, two), np.minimum(one, two))

    def _flatten(self) -> None:
        while True:
            above = self._parent[self._parent]
            if np.array_equal(above, self._parent):
                return
            self._parent = above
