"""Vocabularies that stay where they are: names and merges are found in a file's bytes, without an object for each.

A start needs a few dozen of a hundred thousand entries. `Texts` is what the native core offers of a file; these two
put a dict's and a list's reading side around it, and `whole()`, `list(...)` give real ones to whoever needs all.
"""

from collections.abc import ItemsView, Iterator, Mapping, Sequence
from typing import Protocol, overload


class Texts(Protocol):
    """A list of texts that finds them by their contents."""

    def find(self, text: str) -> int:
        """The place of a text, the last one's of equals, or -1."""

    def __getitem__(self, index: int) -> str: ...

    def __len__(self) -> int: ...


class Vocabulary(Mapping[str, int]):
    """Names of tokens -> ids. unused: ids whose names are no tokens."""

    def __init__(self, texts: Texts, unused: frozenset[int] = frozenset()) -> None:
        self._texts, self._unused = texts, unused

    def find(self, name: str) -> int | None:
        """The id of a name, or None."""
        try:
            place = self._texts.find(name)
        except TypeError:  # a lone surrogate, which no file can hold
            return None
        return None if place < 0 or place in self._unused else place

    def name(self, token_id: int) -> str | None:
        """The name of an id, or None where it is not in use."""
        known = 0 <= token_id < len(self._texts) and token_id not in self._unused
        return self._texts[token_id] if known else None

    @property
    def size(self) -> int:
        """The largest id in use, and one."""
        size = len(self._texts)
        while size and size - 1 in self._unused:
            size -= 1
        return size

    def __getitem__(self, name: str) -> int:
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole())

    def __len__(self) -> int:
        return len(self.whole())

    def items(self) -> ItemsView[str, int]:
        return self.whole().items()

    def whole(self) -> dict[str, int]:
        """All of it. Names that are no UTF-8 stand here too, by a name that `find` does not know."""
        names = {self._texts[i]: i for i in range(len(self._texts))}
        return {name: i for name, i in names.items() if i not in self._unused}


class Merges(Sequence[str]):
    """Merges in the order of their ranks, each as "left right"."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts

    def rank(self, pair: str) -> int | None:
        """The rank of a pair, or None where there is no such merge."""
        found = self._texts.find(pair)
        return None if found < 0 else found

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._texts[i] for i in range(*index.indices(len(self._texts)))]
        return self._texts[index]

    def __len__(self) -> int:
        return len(self._texts)
