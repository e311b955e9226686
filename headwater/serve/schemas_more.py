"""The bodies of OpenAI's Responses and of Anthropic's Messages, by the rules of schemas.py."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from headwater.serve.schemas import (
    HINTS,
    INT64,
    MAX_STOPS,
    Body,
    JsonFormat,
    Name,
    Part,
    TextFormat,
    Tokens,
    must_be_null,
)

Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")]
"""Chat completions allow half as many characters."""


# -- Responses ---------------------------------------------------------------------------------------------------


class InputText(Part):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: Any = Field(None, description=HINTS)


class InputMessage(Part):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class InputCall(Part):
    type: Literal["function_call"]
    call_id: str
    name: ToolName
    arguments: str
    id: str | None = None
    status: str | None = None
    caller: Any = None
    namespace: None = None


class InputResult(Part):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]
    id: str | None = None
    status: str | None = None
    caller: Any = None
    namespace: None = None


class ReasoningText(Part):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class InputReasoning(Part):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: None = None
    status: str | None = None


class ResponseTool(Part):
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseToolName(Part):
    type: Literal["function"]
    name: ToolName


class ResponseAllowed(Part):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ResponseToolName]


class ResponseSchema(Part):
    type: Literal["json_schema"]
    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseText(Part):
    format: Annotated[TextFormat | JsonFormat | ResponseSchema, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Part):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: str | None = Field(None, description=HINTS)
    generate_summary: str | None = Field(None, description=HINTS)


class ResponseRequest(Body):
    """POST /v1/responses. Nothing is kept between requests, so those that build on an earlier one are refused."""

    input: str | Annotated[list[InputMessage | InputCall | InputResult | InputReasoning], Field(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    stream: bool | None = None
    stream_options: dict[str, bool] | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=512)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolName | ResponseAllowed | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["disabled"] | None = None
    include: list[str] | None = Field(None, description=HINTS)
    metadata: dict[str, Any] | None = Field(None, description=HINTS)
    user: str | None = Field(None, description=HINTS)
    store: bool | None = Field(None, description=HINTS)
    service_tier: str | None = Field(None, description=HINTS)
    prompt_cache_key: str | None = Field(None, description=HINTS)
    prompt_cache_retention: str | None = Field(None, description=HINTS)
    prompt_cache_options: Any = Field(None, description=HINTS)
    safety_identifier: str | None = Field(None, description=HINTS)
    background: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    max_tool_calls: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None

    _refused = field_validator("max_tool_calls", "previous_response_id", "conversation", "prompt")(must_be_null)

    @field_validator("include")
    @classmethod
    def _included(cls, value: list[str] | None) -> list[str] | None:
        if "message.output_text.logprobs" in (value or ()):
            raise ValueError("include asks for 'message.output_text.logprobs', which is not given here; leave it out")
        return value


# -- Messages ----------------------------------------------------------------------------------------------------


class CacheControl(Part):
    type: Literal["ephemeral"]
    ttl: str | None = None


class TextBlock(Part):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: list[Any] | None = None


class ThinkingBlock(Part):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class UseBlock(Part):
    type: Literal["tool_use"]
    id: str
    name: ToolName
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: Any = None


class ResultBlock(Part):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


Block = Annotated[TextBlock | ThinkingBlock | UseBlock | ResultBlock, Field(discriminator="type")]


class Turn(Part):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class AnthropicTool(Part):
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = Field(None, description=HINTS)


class AnthropicChoice(Part):
    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> "AnthropicChoice":
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("tool_choice of type 'tool' needs a name, and no other type has one")
        return self


class Thinking(Part):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1, le=INT64 - 1)] | None = None
    display: str | None = Field(None, description=HINTS)


class OutputSchema(Part):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Part):
    format: OutputSchema | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(None, description=HINTS)


class MessageRequest(Body):
    """POST /v1/messages."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_tokens: Tokens
    model: str | None = None
    system: str | list[TextBlock] | None = None
    temperature: Unit | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    stop_sequences: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=512)] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    metadata: dict[str, Any] | None = Field(None, description=HINTS)
    service_tier: str | None = Field(None, description=HINTS)
    cache_control: CacheControl | None = Field(None, description=HINTS)
    inference_geo: str | None = Field(None, description=HINTS)
    speed: str | None = Field(None, description=HINTS)
    diagnostics: Any = Field(None, description=HINTS)
    container: Any = None
    mcp_servers: Any = None
    context_management: Any = None

    _refused = field_validator("container", "mcp_servers", "context_management")(must_be_null)


class CountRequest(Body):
    """POST /v1/messages/count_tokens."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=512)] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = Field(None, description=HINTS)
    speed: str | None = Field(None, description=HINTS)
