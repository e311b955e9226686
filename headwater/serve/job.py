"""A chat request of any API, in one form: what is said, which tools, which form of answer, how to sample.

The APIs translate into a Job; `Planner.plan` makes prompt ids, guides and the splitter of it. Not for HTTP.
"""

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from headwater.chat import Chat
from headwater.files import closest
from headwater.sampling import SamplingParams
from headwater.serve.errors import ApiError
from headwater.serve.front import Work
from headwater.serve.grammar import Format, Grammars
from headwater.serve.guide import Ban, Bias, Guide, Penalties, ThinkingBudget, Together
from headwater.tokenizer import Tokenizer
from headwater.tool_calls import CALL_OPEN, THINK_CLOSE, OutputSplitter

EFFORT_BUDGETS: Mapping[str, int | None] = {
    "none": 0, "minimal": 256, "low": 1024, "medium": 4096, "high": None, "xhigh": None,
}  # fmt: skip
"""Most tokens of reasoning for each effort; None: no limit but the answer's."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """sampling: SamplingParams fields that the request gives. choice: which tools must or may be called; named: the
    only ones allowed (None: all). thinking: None leaves it to the model; budget: most tokens of reasoning.
    """

    messages: list[dict[str, Any]]
    sampling: dict[str, Any]
    tools: list[dict[str, Any]] = field(default_factory=list)
    choice: Literal["auto", "none", "required"] = "auto"
    named: tuple[str, ...] | None = None
    parallel: bool = True
    format: Format | None = None
    thinking: bool | None = None
    budget: int | None = None
    keep_past_thinking: bool = False
    bias: Mapping[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    n: int = 1


@dataclass(frozen=True)
class Plan:
    """works: one for each choice; splitter: takes a choice's text apart; seed: of the first choice."""

    works: list[Work]
    splitter: Callable[[], OutputSplitter]
    prompt_tokens: int
    seed: int
    tool_names: tuple[str, ...]


class Planner:
    """Knows the model's tokenizer and style, and the server's defaults."""

    def __init__(
        self, tokenizer: Tokenizer, chat: Chat | None, defaults: SamplingParams, context: int, vocabulary: int,
        ends: Sequence[int],
    ) -> None:  # fmt: skip
        self.tokenizer, self.chat, self.context = tokenizer, chat, context
        self._defaults, self._vocabulary, self._ends = defaults, vocabulary, tuple(ends)
        self.grammars = Grammars(tokenizer, vocabulary, ends)
        used = [i for i in range(tokenizer.vocab_size) if _known(tokenizer, i)]
        self._most_bytes = context * max(len(tokenizer.token_bytes(i)) for i in used)
        self._unused = sorted(set(range(vocabulary)) - set(used))

    def plan(self, job: Job) -> Plan:
        """ValueError or ApiError names the field at fault."""
        if self.chat is None:
            raise ApiError("this model has no chat template; use /v1/completions, or start the server with --style")
        self._check_size(job)
        tools = job.tools if self._has_tools(job) else []
        thinking, budget = self._thinking(job)
        rendered = self.chat.render(
            job.messages, tools=tools, add_generation_prompt=True, enable_thinking=thinking, today="now",
            keep_past_thinking=job.keep_past_thinking,
        )  # fmt: skip
        ids, _ = rendered.encode()
        names = tuple(t["function"]["name"] for t in tools)
        usable = () if job.choice == "none" else names
        opened = bool(thinking)
        params = self.params(job.sampling, len(ids))
        works = [Work(ids, self.with_seed(params, i), self._guide(job, tools, opened, budget)) for i in range(job.n)]
        return Plan(
            works, lambda: OutputSplitter(tools=usable, thinking=opened), len(ids), params.seed, usable
        )  # fmt: skip

    def params(self, given: Mapping[str, Any], prompt_tokens: int) -> SamplingParams:
        """The defaults with what the request gives; max_tokens reaches to the end of the context at most."""
        room = self.context - prompt_tokens
        if room < 1:
            raise ApiError(
                f"This model's maximum context length is {self.context} tokens, one of them for the answer. However,"
                f" your messages resulted in {prompt_tokens} tokens. Please reduce the length of the messages.",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip
        values = {name: value for name, value in given.items() if value is not None}
        values["max_tokens"] = min(values.get("max_tokens", room), room)
        values["seed"] = values["seed"] % 2**63 if "seed" in values else secrets.randbelow(2**53)
        return dataclasses.replace(self._defaults, **values)

    @staticmethod
    def with_seed(params: SamplingParams, choice: int) -> SamplingParams:
        """The options of another choice of the same request."""
        return dataclasses.replace(params, seed=(params.seed + choice) % 2**63)

    def encode(self, text: str, param: str) -> list[int]:
        """Ids of plain text for a continuation. ApiError when it cannot fit, before any work is spent on it."""
        if len(text.encode()) > self._most_bytes:
            raise self._too_long(param)
        return self.tokenizer.encode(text, bos=self.tokenizer.add_bos)

    def check_bias(self, bias: Mapping[str, float] | None) -> dict[int, float]:
        """logit_bias with ids as numbers."""
        checked: dict[int, float] = {}
        for key, value in (bias or {}).items():
            if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < self._vocabulary):
                raise ApiError(
                    f"logit_bias has the key {key!r:.40}; allowed: token ids 0 to {self._vocabulary - 1} as texts",
                    param="logit_bias",
                )
            checked[int(key)] = value
        return checked

    def shaped(self, bias: Mapping[int, float], frequency: float, presence: float, inner: Guide | None) -> Guide | None:
        """The guides that a request needs, as one; None when there is nothing to do."""
        guides: list[Guide] = []
        if frequency or presence:
            guides.append(Penalties(frequency, presence))
        if bias:
            guides.append(Bias(bias))
        if self._unused:  # rows of the embedding that are no token
            guides.append(Ban(self._unused))
        if inner is not None:
            guides.append(inner)
        return Together(guides) if len(guides) > 1 else guides[0] if guides else None

    def _guide(self, job: Job, tools: Sequence[Mapping[str, Any]], opened: bool, budget: int | None) -> Guide | None:
        inner: Guide | None = None
        if job.choice == "none" and tools:
            start = self.tokenizer.markup_id(CALL_OPEN)
            inner = Ban([start]) if start is not None else None
        allowed = [t for t in tools if job.named is None or t["function"]["name"] in job.named]
        grammar = self.grammars.answer(
            job.format, allowed, must_call=job.choice == "required", may_call=job.choice != "none",
            parallel=job.parallel, all_tools=len(allowed) == len(tools),
        )  # fmt: skip
        if grammar is not None:
            inner = grammar if inner is None else Together([inner, grammar])
        if opened:
            close = self.tokenizer.markup_id(THINK_CLOSE)
            closing = [close] if close is not None else self.tokenizer.encode(THINK_CLOSE)
            inner = ThinkingBudget(budget, closing, self._ends, inner)
        return self.shaped(job.bias, job.frequency_penalty, job.presence_penalty, inner)

    def _thinking(self, job: Job) -> tuple[bool | None, int | None]:
        """(enable_thinking for the template, most tokens of reasoning)."""
        assert self.chat is not None
        thinking = job.thinking
        if job.budget is not None and thinking is None:
            thinking = job.budget > 0
        if job.budget == 0:
            thinking = False
        if thinking and not self.chat.style.thinking:
            raise ApiError("this model does not reason; leave thinking, reasoning_effort and budgets out",
                           param="reasoning_effort", code="unsupported_parameter")  # fmt: skip
        return thinking, job.budget

    def _has_tools(self, job: Job) -> bool:
        names = [t["function"]["name"] for t in job.tools]
        for name in job.named or ():
            if name not in names:
                raise ApiError(
                    f"tool_choice names {name!r}{closest(name, names)}, which is not in tools", param="tool_choice"
                )
        if job.choice == "required" and not names:
            raise ApiError("tool_choice asks for a call, but there are no tools", param="tool_choice")
        twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
        if twice is not None:
            raise ApiError(f"tools has two functions with the name {twice!r}", param="tools")
        if names and self.chat is not None and (self.chat.style.tools is None or self.chat.style.calls is None):
            raise ApiError("this model's chat style has no place for tools; leave them out", param="tools",
                           code="unsupported_parameter")  # fmt: skip
        return bool(names)

    def _check_size(self, job: Job) -> None:
        size = sum(len(str(m.get("content", ""))) for m in job.messages)
        if size > self._most_bytes:
            raise self._too_long("messages")

    def _too_long(self, param: str) -> ApiError:
        return ApiError(f"This model's maximum context length is {self.context} tokens; the text cannot fit.",
                        param=param, code="context_length_exceeded")  # fmt: skip


def _known(tokenizer: Tokenizer, token: int) -> bool:
    try:
        tokenizer.token_bytes(token)
    except ValueError:
        return False
    return True
