"""A chat request of any API, in one form: what is said, which tools, which form of answer, how to sample.

The APIs translate into a Job; `Planner.plan` makes prompt ids, masks and the splitter of it. Not for HTTP.
"""

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from headwater.chat import Chat
from headwater.engine.engine import Mask
from headwater.files import closest
from headwater.sampling import SamplingParams, ThinkBudget
from headwater.serve.errors import ApiError
from headwater.serve.front import Work
from headwater.serve.grammar import Format, GrammarMask, Grammars
from headwater.serve.guide import AnswerMask
from headwater.tokenizer import Tokenizer
from headwater.tool_calls import CALL_OPEN, THINK_CLOSE, THINK_OPEN, OutputSplitter

EFFORT_BUDGETS: Mapping[str, int | None] = {
    "none": 0, "minimal": 256, "low": 1024, "medium": 4096, "high": None, "xhigh": None, "max": None,
}  # fmt: skip
"""Most tokens of reasoning for each effort; None: no limit but the answer's."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """sampling: SamplingParams fields that the request gives. choice: which tools must or may be called; named: the
    only ones allowed (None: all). thinking: None leaves it to the model; budget: most tokens of reasoning.
    thinking_param: the field that asks for it. continued: the answer goes on with the last message (None: if that is
    the assistant's).
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
    thinking_param: str = "reasoning_effort"
    continued: bool | None = None
    keep_past_thinking: bool = False
    n: int = 1
    user: str | None = None


@dataclass(frozen=True)
class Plan:
    """splitter: takes a choice's text apart, of a stream or not; seed: of the first choice; tool_names: what a call may
    name."""

    work: Work
    splitter: Callable[[bool], OutputSplitter]
    seed: int
    tool_names: tuple[str, ...]


@dataclass(frozen=True)
class _Prompt:
    """opened: the prompt ends inside of reasoning; budget: most tokens of it; begun: text of the answer in it.
    may_think: the model may open a thought by itself.
    """

    ids: list[int]
    tools: list[dict[str, Any]]
    opened: bool
    budget: int | None
    begun: str
    may_think: bool


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
        prompt = self._prompt(job)
        names = tuple(t["function"]["name"] for t in prompt.tools)
        usable = () if job.choice == "none" else names
        bare = usable if prompt.opened or not prompt.begun else ()  # calls without their tags can only begin an answer
        params = self.params(job.sampling, len(prompt.ids))
        if prompt.opened and prompt.budget is not None:
            params = dataclasses.replace(params, think=ThinkBudget(tokens=prompt.budget, end=self._closing()))
        each = [self.with_seed(params, i) for i in range(job.n)]
        masks = [self._mask(job, prompt) for _ in each]
        work = Work(prompt.ids, each, masks, user=job.user)
        return Plan(
            work, lambda stream: OutputSplitter(tools=bare, thinking=prompt.opened, calling=stream), params.seed,
            usable,
        )  # fmt: skip

    def count(self, job: Job) -> int:
        """Tokens of the prompt, more than the context has among them. Errors as `plan`."""
        return len(self._prompt(job).ids)

    def _prompt(self, job: Job) -> _Prompt:
        if self.chat is None:
            raise ApiError("this model has no chat template; use /v1/completions, or start the server with --style")
        self._check_size(job)
        tools = job.tools if self._has_tools(job) else []
        thinking, budget = self._thinking(job)
        more = goes_on(job.messages, job.continued)
        said = more and any(value for key, value in job.messages[-1].items() if key != "role")
        if said and thinking:
            raise ApiError("the answer continues the last message, before which no reasoning can open; leave one out",
                           param=job.thinking_param)  # fmt: skip
        rendered = self.chat.render(
            job.messages, tools=tools, add_generation_prompt=not more, continue_last=more, enable_thinking=thinking,
            today="now", keep_past_thinking=job.keep_past_thinking,
        )  # fmt: skip
        ids, _ = rendered.encode()
        begun, opened = rendered.begun()
        may_think = thinking is None and not said and self.chat.style.thinking is not None
        return _Prompt(ids, tools, opened, budget, begun, may_think)

    def params(self, given: Mapping[str, Any], prompt_tokens: int, param: str = "messages") -> SamplingParams:
        """The defaults with what the request gives; max_tokens reaches to the end of the context at most. param: the
        field that the prompt came in."""
        room = self.context - prompt_tokens
        if room < 1:
            raise ApiError(
                f"This model's maximum context length is {self.context} tokens, one of them for the answer. However,"
                f" your {param} resulted in {prompt_tokens} tokens. Please reduce the length of the {param}.",
                param=param, code="context_length_exceeded",
            )  # fmt: skip
        values = {name: value for name, value in given.items() if value is not None}
        if values.get("top_p") == 0:  # the likeliest token alone
            values |= {"temperature": 0.0, "top_p": 1.0}
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

    def bias(self, given: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
        """logit_bias as SamplingParams has it."""
        for key in given or {}:
            if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < self._vocabulary):
                raise ApiError(
                    f"logit_bias has the key {key!r:.40}; allowed: token ids 0 to {self._vocabulary - 1} as texts",
                    param="logit_bias",
                )
        return tuple((int(key), value) for key, value in (given or {}).items())

    def mask(
        self,
        grammar: GrammarMask | None,
        *,
        barred: Sequence[int] = (),
        thinking: bool = False,
        may_think: bool = False,
    ) -> Mask | None:
        """What the tokens of an answer may be; None where all may. thinking: it begins inside of reasoning; may_think:
        or with a thought, where one token opens it.
        """
        opening = self.tokenizer.markup_id(THINK_OPEN) if may_think and grammar is not None else None
        barred = [*self._unused, *barred]
        if grammar is None and not barred and not thinking:
            return None
        return AnswerMask(
            self._vocabulary, barred=barred, ends=self._ends, grammar=grammar,
            close=THINK_CLOSE.encode() if thinking or opening is not None else None, opening=opening,
            token_bytes=self.tokenizer.token_bytes,
        )  # fmt: skip

    def _mask(self, job: Job, prompt: _Prompt) -> Mask | None:
        tools = prompt.tools
        start = self.tokenizer.markup_id(CALL_OPEN)
        barred = [start] if job.choice == "none" and tools and start is not None else []
        allowed = [t for t in tools if job.named is None or t["function"]["name"] in job.named]
        grammar = self.grammars.answer(
            job.format, allowed, must_call=job.choice == "required", may_call=job.choice != "none",
            parallel=job.parallel, all_tools=len(allowed) == len(tools),
        )  # fmt: skip
        if grammar is not None and prompt.begun and job.choice != "required":  # a call that must come follows the text
            grammar.begin(self.tokenizer.encode(prompt.begun))
        return self.mask(grammar, barred=barred, thinking=prompt.opened, may_think=prompt.may_think)

    def _closing(self) -> tuple[int, ...]:
        """Ids of the tag that ends reasoning."""
        close = self.tokenizer.markup_id(THINK_CLOSE)
        return (close,) if close is not None else tuple(self.tokenizer.encode(THINK_CLOSE))

    def _thinking(self, job: Job) -> tuple[bool | None, int | None]:
        """(enable_thinking for the template, most tokens of reasoning)."""
        assert self.chat is not None
        thinking = job.thinking
        if job.budget is not None and thinking is None:
            thinking = job.budget > 0
        if job.budget == 0:
            thinking = False
        if thinking and not self.chat.style.thinking:
            raise ApiError(f"this model does not reason; leave {job.thinking_param} out", param=job.thinking_param,
                           code="unsupported_parameter")  # fmt: skip
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


def goes_on(messages: Sequence[Mapping[str, Any]], asked: bool | None = None) -> bool:
    """Whether an answer continues the last message; asked: what the request says of it."""
    return messages[-1]["role"] == "assistant" if asked is None else asked


def _known(tokenizer: Tokenizer, token: int) -> bool:
    try:
        tokenizer.token_bytes(token)
    except ValueError:
        return False
    return True
