"""How the next token is picked: the options of one request, checked, without torch."""

from headwater.records import record

_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}
_COUNTS = {"max_tokens": 1, "min_tokens": 0, "top_k": 0, "seed": 0, "logprobs": 0}
_MOST_BIAS = 1000.0


@record(frozen=True, kw_only=True)
class ThinkBudget:
    """After `tokens` tokens of thought the ids `end` are forced, unless the thought has ended by itself.

    start: the ids that open a thought in the answer (it must begin with them, else nothing is forced); empty: the
    prompt has opened it.
    """

    tokens: int
    end: tuple[int, ...]
    start: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 0:
            raise ValueError(f"tokens of the think budget is {self.tokens!r}; allowed: an integer from 0")
        for name, ids in (("end", self.end), ("start", self.start)):
            if not isinstance(ids, tuple) or not all(isinstance(i, int) and i >= 0 for i in ids):
                raise ValueError(f"{name} of the think budget is {ids!r}; allowed: a tuple of token ids")
        if not self.end:
            raise ValueError("end of the think budget is empty; it needs the ids that close a thought")


@record(frozen=True, kw_only=True)
class SamplingParams:
    """Options of one request; ValueError names a value out of range.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0, repetition_penalty 1 and presence_ and frequency_penalty 0
    switch that rule off. The rules apply in the order repetition penalty (tokens of prompt and answer), presence and
    frequency penalty (tokens of the answer: once, and per occurrence), logit_bias ((id, added to its logit) pairs),
    min_tokens (no end token before), temperature, top_k, top_p, min_p. stop: texts that end the answer (not part of
    it). logprobs: None, or how many likely tokens to report beside each chosen one (0: the chosen one alone); they are
    the model's, before any rule. think: a bound on reasoning.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    think: ThinkBudget | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; allowed: a number from {low:g} to {high:g}")
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if value is None and name == "logprobs":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; allowed: an integer from {least}")
        if self.seed >= 1 << 63:
            raise ValueError(f"seed is {self.seed}; allowed: an integer from 0 below 2^63")
        if not isinstance(self.stop, tuple) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError(f"stop is {self.stop!r}; allowed: a tuple of non-empty texts")
        if self.top_p == 0:
            raise ValueError("top_p is 0; allowed: above 0, up to 1 (use temperature=0 for greedy)")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}; allowed: up to max_tokens, {self.max_tokens}")
        if not isinstance(self.logit_bias, tuple) or not all(map(_is_bias, self.logit_bias)):
            raise ValueError(
                f"logit_bias is {self.logit_bias!r}; allowed: a tuple of (token id, number of at most {_MOST_BIAS:g})"
            )


def _is_bias(pair: object) -> bool:
    if not isinstance(pair, tuple) or len(pair) != 2:
        return False
    token, added = pair
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        return False
    return isinstance(added, int | float) and not isinstance(added, bool) and abs(added) <= _MOST_BIAS


PRESETS = {
    "greedy": SamplingParams(),
    "lfm2": SamplingParams(temperature=0.3, min_p=0.15, repetition_penalty=1.05),
    "lfm3": SamplingParams(temperature=0.1, top_k=50, repetition_penalty=1.1),
}
"""What the publishers of the models recommend for text."""
