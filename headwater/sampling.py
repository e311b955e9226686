"""How the next token is picked: the options of one request, checked, without torch."""

from dataclasses import dataclass

_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Options of one request; ValueError names a value out of range.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and repetition_penalty 1 switch that rule off. The rules apply
    in the order penalty, temperature, top_k, top_p, min_p. stop: texts that end the answer (not part of it).
    logprobs: None, or how many likely tokens to report beside each chosen one (0: the chosen one alone).
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; allowed: a number from {low:g} to {high:g}")
        for name, low in (("max_tokens", 1), ("top_k", 0), ("seed", 0), ("logprobs", 0)):
            value = getattr(self, name)
            if value is None and name == "logprobs":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} is {value!r}; allowed: an integer from {low}")
        if not isinstance(self.stop, tuple) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError(f"stop is {self.stop!r}; allowed: a tuple of non-empty texts")
        if self.top_p == 0:
            raise ValueError("top_p is 0; allowed: above 0, up to 1 (use temperature=0 for greedy)")


PRESETS = {
    "greedy": SamplingParams(),
    "lfm2": SamplingParams(temperature=0.3, min_p=0.15, repetition_penalty=1.05),
    "lfm3": SamplingParams(temperature=0.1, top_k=50, repetition_penalty=1.1),
}
"""What the publishers of the models recommend for text."""
