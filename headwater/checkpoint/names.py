"""Tensor names of each family translated through one table, both ways; text only, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """One family's spelling: `parts` renames dotted parts of a name (ours: theirs; `parent.part: theirs` under that
    parent only), `prefix` stands before all names but those in `bare`."""

    parts: Mapping[str, str]
    prefix: str = "model."
    bare: tuple[str, ...] = ("lm_head.weight",)

    def theirs(self, name: str) -> str:
        """The file's name of our tensor."""
        parts = name.split(".")
        parents = ["", *parts]
        renamed = ".".join(
            self.parts.get(f"{parent}.{part}", self.parts.get(part, part))
            for parent, part in zip(parents, parts, strict=False)
        )
        return renamed if name in self.bare else self.prefix + renamed

    def ours(self, name: str) -> str:
        """Our name of the file's tensor; a missing prefix (base models saved alone) is forgiven."""
        back = {theirs: ours.rpartition(".")[2] for ours, theirs in self.parts.items()}
        return ".".join(back.get(part, part) for part in name.removeprefix(self.prefix).split("."))
