"""/v1/chat/completions as the real openai client sees it."""

import json

import openai
import pytest

from headwater.chat import Chat
from headwater.engine.engine import Engine
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer

SAY = [{"role": "user", "content": "The river runs"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Saint-Malo"]}, "days": {"type": "integer", "maximum": 99}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as c:
        yield c


def ask(client, **options):
    return client.chat.completions.create(model="tiny", messages=options.pop("messages", SAY), **options)


def test_greedy_text_is_the_engines(client, tiny_model):
    answer = ask(client, temperature=0, max_tokens=12)
    tokenizer = Tokenizer.from_pretrained(tiny_model)
    ids, _ = Chat(tokenizer, "lfm2.5").render(SAY, add_generation_prompt=True).encode()
    engine = Engine.from_pretrained(tiny_model, threads=1, weights="F32", chunk_size=64, tokenizer=tokenizer)
    (expected,) = engine.generate([ids], SamplingParams(max_tokens=12))
    assert answer.usage.completion_tokens == len(expected.ids)
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.total_tokens == len(ids) + len(expected.ids)
    assert answer.choices[0].message.content == tokenizer.decode(expected.ids, skip_special=False)
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.model == "tiny"


def test_a_stream_adds_up_to_the_answer(client):
    options = {"seed": 3, "max_tokens": 20, "n": 2, "logprobs": True, "top_logprobs": 2}
    whole = ask(client, **options)
    chunks = list(ask(client, **options, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert len({c.id for c in chunks}) == 1
    for i in range(2):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == i]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == whole.choices[i].message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [whole.choices[i].finish_reason]
        logprobs = [row for c in mine if c.logprobs for row in c.logprobs.content]
        assert logprobs == whole.choices[i].logprobs.content
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_seed_and_temperature(client):
    first, again = (ask(client, seed=5, max_tokens=16).choices[0].message.content for _ in range(2))
    assert first == again
    assert ask(client, seed=6, max_tokens=16).choices[0].message.content != first
    # the seed that was drawn is told, and gives the same answer again
    free = ask(client, max_tokens=16)
    assert ask(client, max_tokens=16, seed=free.seed).choices[0].message.content == free.choices[0].message.content


def test_the_smallest_nucleus_is_the_likeliest_token(client):
    greedy = ask(client, temperature=0, max_tokens=12).choices[0].message.content
    assert ask(client, top_p=0, temperature=1.5, max_tokens=12, seed=3).choices[0].message.content == greedy


def test_stop_ends_before_the_text(client):
    text = ask(client, temperature=0, max_tokens=12).choices[0].message.content
    stopped = ask(client, temperature=0, max_tokens=12, stop=text[4:6]).choices[0]
    assert stopped.message.content == text[: text.index(text[4:6])]
    assert stopped.finish_reason == "stop"


def test_logit_bias_forces_and_forbids(client, tiny_model):
    tokenizer = Tokenizer.from_pretrained(tiny_model)
    (token,) = tokenizer.encode("z")
    assert ask(client, max_tokens=3, logit_bias={str(token): 100}).choices[0].message.content == "zzz"
    first = ask(client, temperature=0, max_tokens=1, logprobs=True).choices[0].logprobs.content[0].token
    barred = {str(t): -100 for t in range(tokenizer.vocab_size) if tokenizer.decode([t], skip_special=False) == first}
    other = ask(client, temperature=0, max_tokens=1, logprobs=True, logit_bias=barred).choices[0].logprobs.content[0]
    assert barred and other.token != first
    with pytest.raises(openai.BadRequestError, match="logit_bias has the key '99999'"):
        ask(client, logit_bias={"99999": 1})


def test_presence_penalty_forbids_repetition(client, tiny_model):
    tokenizer = Tokenizer.from_pretrained(tiny_model)
    a, b = (tokenizer.encode(c)[0] for c in "ab")
    options = {"temperature": 0, "max_tokens": 2, "logit_bias": {str(a): 99, str(b): 99}}
    first, second = ask(client, **options).choices[0].message.content
    assert first == second  # the logits of the tiny model differ by less than the penalties
    first, second = ask(client, **options, presence_penalty=2.0, frequency_penalty=2.0).choices[0].message.content
    assert first != second


def put_together(parts):
    """Calls of the deltas of a stream: the first of each has an id and a name, the rest have more of its arguments."""
    calls = []
    for part in parts:
        assert part.index in (len(calls) - 1, len(calls))
        if part.index == len(calls):
            assert part.id and part.function.name and part.type == "function"
            calls.append(part)
        else:
            assert part.id is None and part.function.name is None and part.function.arguments
            calls[-1].function.arguments += part.function.arguments
    return calls


NOTE = {
    "type": "function",
    "function": {
        "name": "note",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string", "pattern": "^[a-z ]{30,40}$"}},
            "required": ["text"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


def test_arguments_come_while_they_are_written(client):
    options = {"model": "tiny", "messages": SAY, "tools": [NOTE], "tool_choice": "required", "seed": 3,
               "max_tokens": 300}  # fmt: skip
    with client.chat.completions.stream(**options) as events:  # the library's own reading of a stream
        seen = list(events)
        final = events.get_final_completion().choices[0]
    pieces = [e for e in seen if e.type == "tool_calls.function.arguments.delta"]
    done = [e for e in seen if e.type == "tool_calls.function.arguments.done"]
    assert final.finish_reason == "tool_calls"
    calls = final.message.tool_calls
    assert [c.function.name for c in calls] == ["note"] * len(calls) == [e.name for e in done]
    for i, call in enumerate(calls):
        mine = [e.arguments_delta for e in pieces if e.index == i]
        assert "".join(mine) == call.function.arguments
        assert len([p for p in mine if p]) > 10
        assert 30 <= len(json.loads(call.function.arguments)["text"]) <= 40
    whole = ask(client, **{k: v for k, v in options.items() if k != "model"}).choices[0].message.tool_calls
    assert [c.function for c in whole] == [type(w.function)(name="note", arguments=c.function.arguments)
                                           for w, c in zip(whole, calls, strict=True)]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_required_calls_come_and_fit_the_schema(client, tiny_model, choice, stream):
    end_soon = {str(Tokenizer.from_pretrained(tiny_model).encode("]")[0]): 1.5}  # random weights would call on and on
    for seed in range(4):
        options = {"tools": [WEATHER, CLOCK], "tool_choice": choice, "seed": seed, "parallel_tool_calls": seed > 1}
        options["logit_bias"] = end_soon
        if stream:
            chunks = [c.choices[0] for c in ask(client, **options, stream=True)]
            calls = put_together([part for c in chunks for part in c.delta.tool_calls or ()])
            reason = chunks[-1].finish_reason
            text = "".join(c.delta.content or "" for c in chunks)
        else:
            (answer,) = ask(client, **options).choices
            calls, reason, text = answer.message.tool_calls, answer.finish_reason, answer.message.content or ""
        assert calls and reason == "tool_calls" and text == ""
        assert len(calls) == 1 or options["parallel_tool_calls"]
        for call in calls:
            arguments = json.loads(call.function.arguments)
            if choice != "required" or call.function.name == "weather":
                assert call.function.name == "weather"
                assert arguments["city"] in ("Oslo", "Saint-Malo")
                assert isinstance(arguments.get("days", 0), int)
            else:
                assert arguments == {}


def test_no_calls_when_none_is_chosen(client, tiny_model):
    tokenizer = Tokenizer.from_pretrained(tiny_model)
    start = str(tokenizer.id_of("<|tool_call_start|>"))
    free = ask(client, tools=[WEATHER], logit_bias={start: 100}, max_tokens=4).choices[0].message
    assert free.content is None or free.tool_calls is None
    barred = ask(client, tools=[WEATHER], tool_choice="none", logit_bias={start: 100}, max_tokens=4).choices[0]
    assert "<|tool_call_start|>" not in (barred.message.content or "") and not barred.message.tool_calls


def test_a_conversation_with_calls_and_results_is_read(client):
    answer = ask(client, max_tokens=30, tools=[CLOCK], tool_choice="required", parallel_tool_calls=False)
    call = answer.choices[0].message
    messages = [*SAY, call.model_dump(), {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "12:00"}]
    assert ask(client, messages=messages, tools=[CLOCK], max_tokens=5).usage.completion_tokens >= 1


@pytest.mark.parametrize("budget", [1, 5])
def test_the_thinking_budget_is_exact(client, budget):
    answer = ask(client, extra_body={"thinking_budget": budget}, max_tokens=60, seed=1)
    message = answer.choices[0].message
    closing = len("</think>")
    details = answer.usage.completion_tokens_details
    assert message.reasoning_content
    assert "think>" not in message.content + message.reasoning_content
    assert budget <= details.reasoning_tokens <= budget + closing


def test_thinking_off_gives_no_reasoning(client):
    for off in (
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"thinking_budget": 0},
    ):
        message = ask(client, extra_body=off, max_tokens=8, seed=2).choices[0].message
        assert not getattr(message, "reasoning_content", None)
        assert message.content


def test_a_schema_holds_beside_thinking_and_tools(client):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    for extra in ({}, {"thinking_budget": 3}):
        message = ask(client, response_format=form, max_tokens=200, seed=4, extra_body=extra).choices[0].message
        assert isinstance(json.loads(message.content)["n"], int)
        assert bool(getattr(message, "reasoning_content", None)) == bool(extra)
    for seed in range(6):
        message = ask(client, response_format=form, tools=[CLOCK], max_tokens=200, seed=seed).choices[0].message
        assert (message.tool_calls is not None) != bool(message.content)
        if message.content:
            assert isinstance(json.loads(message.content)["n"], int)


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"extra_body": {"temprature": 1}}, "temprature", "did you mean 'temperature'"),
        ({"extra_body": {"max_tokens": "5"}}, "max_tokens", "integer"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "usr", "content": "a"}]}, "messages[0].role", "'developer', 'system'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content", ""),
        ({"tools": [WEATHER, WEATHER]}, "tools", "two functions"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "clok"}}}, "tool_choice",
         "did you mean 'clock'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
         "response_format.json_schema.schema", "cannot be applied"),
        ({"extra_body": {"response_format": {"type": "regex", "regex": "(a"}}}, "response_format.regex", "unclosed"),
        ({"top_logprobs": 3}, None, "top_logprobs came without logprobs"),
        ({"messages": [{"role": "user", "content": "sea " * 600}]}, "messages", "maximum context length is 512"),
        ({"extra_body": {"audio": {"voice": "x"}}}, "audio", "not supported"),
    ],
)  # fmt: skip
def test_a_fault_names_its_field(client, options, param, words):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    body = caught.value.body
    assert body["param"] == param or (param and str(body["param"]).startswith(param)), body
    assert words in body["message"]
    assert body["type"] == "invalid_request_error"


def test_fields_of_the_newest_clients_are_read(client):
    hints = {"prompt_cache_options": {"mode": "explicit"}, "top_logprobs": 0, "reasoning_effort": "max"}
    part = {"type": "text", "text": "The river", "prompt_cache_breakpoint": {"mode": "explicit"}}
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [part]}]
    answer = ask(client, messages=messages, max_tokens=1, extra_body=hints)
    plain = [messages[0], {"role": "user", "content": "The river"}]
    closed = ask(client, messages=plain, max_tokens=1)
    assert closed.usage.prompt_tokens < answer.usage.prompt_tokens  # the effort opens the reasoning
    again = ask(client, messages=plain, max_tokens=1, extra_body={"reasoning_effort": "high"})
    assert again.usage.prompt_tokens == answer.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="not supported"):
        ask(client, extra_body={"moderation": {"model": "m"}})


def test_a_wrong_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="this server runs 'tiny'"):
        client.chat.completions.create(model="gpt-4", messages=SAY)


def test_models(client):
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").context_length == 512
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")


def test_completions(client, tiny_model):
    options = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    one = client.completions.create(prompt="The river", **options)
    both = client.completions.create(prompt=["The river", "A boat"], **options, logprobs=1)
    assert both.choices[0].text == one.choices[0].text
    assert both.usage.prompt_tokens > one.usage.prompt_tokens
    assert len(both.choices[1].logprobs.tokens) == 6
    ids = Tokenizer.from_pretrained(tiny_model).encode("The river", bos=True)
    assert client.completions.create(prompt=ids, **options).choices[0].text == one.choices[0].text
    assert (
        client.completions.create(prompt=ids, echo=True, **options).choices[0].text == "The river" + one.choices[0].text
    )
    streamed = client.completions.create(prompt="The river", stream=True, **options)
    assert "".join(c.choices[0].text for c in streamed) == one.choices[0].text


def test_a_prompt_that_is_too_long_is_called_by_its_field(client):
    with pytest.raises(openai.BadRequestError, match="your prompt resulted in") as caught:
        client.completions.create(model="tiny", prompt="sea " * 600)
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
