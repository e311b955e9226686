"""The bodies of OpenAI's chat, completion and embedding requests, and the rules that every body keeps.

A field OpenAI knows is read, or changes nothing here and is named in HINTS, or is refused unless it is null. Any other
is refused by name. Nothing is coerced: "5" is no number.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_DEPTH = 48
MAX_STOPS = 16
MAX_CHOICES = 16
INT64 = 2**63
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,64}$")]
Real = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-INT64, lt=INT64)]
Tokens = Annotated[int, Field(ge=1, le=INT64 - 1)]
HINTS = "Bookkeeping and hints that change no answer: user, metadata, store, service_tier, prompt_cache_key, ..."


def check_tree(value: Any) -> Any:
    """ValueError for JSON nested too deeply, with text or numbers that JSON has not; without recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"the body is nested deeper than {MAX_DEPTH} levels")
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, str) and not item.isascii():
                _check_text(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"the body holds {item}, which is no number of JSON")
        level = deeper
    return value


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"text holds a lone surrogate (U+{ord(text[e.start]):04X}), which is no character") from None


class Part(BaseModel):
    """A part of a body: strict, without unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Body(Part):
    """A whole body."""

    @model_validator(mode="before")
    @classmethod
    def _tree(cls, value: Any) -> Any:
        return check_tree(value)


def must_be_null(value: Any) -> None:
    """Validator of fields that this server has no answer to."""
    if value is not None:
        raise ValueError("this field is not supported by this server; leave it out")


class Function(Part):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    type: Literal["function"]
    function: Function


class FunctionName(Part):
    name: Name


class NamedTool(Part):
    type: Literal["function"]
    function: FunctionName


class AllowedList(Part):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedTools(Part):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedList


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


class TextPart(Part):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Any = Field(None, description=HINTS)


class CallFunction(Part):
    name: str
    arguments: str | dict[str, Any] = ""


class Call(Part):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CallFunction
    index: int | None = None


class Message(Part):
    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    def plain(self) -> dict[str, Any]:
        """As headwater.chat reads it."""
        message = self.model_dump(
            exclude_none=True, include={"content", "tool_calls", "reasoning", "reasoning_content"}
        )
        for call in message.get("tool_calls", ()):
            call.pop("index", None)
        return {"role": "system" if self.role == "developer" else self.role, "content": "", **message}


class JsonSchema(Part):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    name: Name
    description: str | None = None
    schema_: dict[str, Any] | bool = Field(alias="schema")
    strict: bool | None = None


class TextFormat(Part):
    type: Literal["text"]


class JsonFormat(Part):
    type: Literal["json_object"]


class SchemaFormat(Part):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Part):
    """Not OpenAI's: an answer that a regular expression matches as a whole."""

    type: Literal["regex"]
    regex: str


class GrammarFormat(Part):
    """Not OpenAI's: an answer of a context-free grammar, in Lark's notation or GBNF."""

    type: Literal["grammar"]
    grammar: str


ResponseFormat = Annotated[
    TextFormat | JsonFormat | SchemaFormat | RegexFormat | GrammarFormat, Field(discriminator="type")
]


class StreamOptions(Part):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ThinkingKwargs(Part):
    enable_thinking: bool | None = None
    keep_past_thinking: bool | None = None


class Sampled(Body):
    """What all requests for text share. top_k, min_p, repetition_penalty are not OpenAI's."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = None
    seed: Seed | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description=HINTS)

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and not all(value):
            raise ValueError("stop holds an empty text; allowed: texts of one character or more")
        return value or None

    @model_validator(mode="after")
    def _options(self) -> "Sampled":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options came without stream=true")
        return self


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=512)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=INT64 - 1)] | None = Field(
        None, description="Not OpenAI's: most tokens of reasoning."
    )
    chat_template_kwargs: ThinkingKwargs | None = None
    continue_final_message: bool | None = Field(None, description="vLLM's: the answer goes on with the last message.")
    add_generation_prompt: bool | None = Field(None, description="vLLM's: the contrary of continue_final_message.")
    metadata: dict[str, Any] | None = Field(None, description=HINTS)
    store: bool | None = Field(None, description=HINTS)
    service_tier: str | None = Field(None, description=HINTS)
    prompt_cache_key: str | None = Field(None, description=HINTS)
    prompt_cache_retention: str | None = Field(None, description=HINTS)
    prompt_cache_options: Any = Field(None, description=HINTS)
    safety_identifier: str | None = Field(None, description=HINTS)
    prediction: Any = Field(None, description=HINTS)
    verbosity: Literal["medium"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    audio: Any = None
    web_search_options: Any = None
    moderation: Any = None
    functions: Any = None
    function_call: Any = None

    _refused = field_validator("audio", "web_search_options", "moderation", "functions", "function_call")(must_be_null)

    @model_validator(mode="after")
    def _together(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs came without logprobs=true")
        if self.max_tokens and self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens say the same thing; send one of them")
        if self.add_generation_prompt is not None and self.add_generation_prompt == self.continue_final_message:
            raise ValueError("continue_final_message and add_generation_prompt contradict each other; send one of them")
        return self

    def continued(self) -> bool | None:
        """Whether the answer shall go on with the last message; None: nothing is said."""
        if self.continue_final_message is None and self.add_generation_prompt is not None:
            return not self.add_generation_prompt
        return self.continue_final_message


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Tokens | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None
    suffix: Any = None
    response_format: ResponseFormat | None = None

    _refused = field_validator("suffix")(must_be_null)

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if isinstance(value, list) and not value:
            raise ValueError("prompt is an empty list; allowed: a text, texts, token ids")
        if isinstance(value, list) and len(value) > 128 and not isinstance(value[0], int):
            raise ValueError(f"prompt has {len(value)} texts; allowed: up to 128")
        return value


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    input: str | list[str] | list[int] | list[list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Any = None
    user: str | None = Field(None, description=HINTS)

    _refused = field_validator("dimensions")(must_be_null)

    @field_validator("input")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if not value or (isinstance(value, list) and any(v in ("", []) for v in value)):
            raise ValueError("input is empty; allowed: a text, texts, token ids")
        if isinstance(value, list) and len(value) > 2048 and not isinstance(value[0], int):
            raise ValueError(f"input has {len(value)} texts; allowed: up to 2048")
        return value


class TokenizeRequest(Body):
    """POST /tokenize: a text, or messages as a chat request would render them."""

    text: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    bos: bool = False
    pieces: bool = False

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.text is None) == (self.messages is None):
            raise ValueError("text or messages is needed, one of the two")
        return self


class DetokenizeRequest(Body):
    """POST /detokenize."""

    tokens: Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(max_length=1 << 20)]
    skip_special: bool = False
