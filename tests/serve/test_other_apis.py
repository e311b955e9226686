"""Anthropic's messages with the real anthropic client; responses and embeddings with the real openai client."""

import json

import anthropic
import numpy as np
import openai
import pytest

SAY = [{"role": "user", "content": "The river runs"}]
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}


def ask(claude, **options):
    return {"model": "tiny", "messages": SAY, "max_tokens": 20} | options


def shape(message):
    """What does not depend on the request's own ids."""
    return [{k: v for k, v in b.to_dict().items() if k != "id"} for b in message.content], message.stop_reason


@pytest.mark.parametrize(
    "options",
    [
        {"extra_body": {"temperature": 0.0}},
        {"extra_body": {"temperature": 0.0}, "thinking": {"type": "enabled", "budget_tokens": 4}, "max_tokens": 60},
        {
            "extra_body": {"temperature": 0.0},
            "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        },
    ],
)
def test_messages_stream_adds_up_to_the_answer(claude, options):
    options = ask(claude, **options)
    if "tool_choice" in options:
        options |= {"tools": [{"name": "weather", "input_schema": PARAMETERS}], "max_tokens": 100}
    whole = claude.messages.create(**options)
    with claude.messages.stream(**options) as stream:
        streamed = stream.get_final_message()
    assert shape(streamed) == shape(whole)
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    kinds = [b.type for b in whole.content]
    if "thinking" in options:
        assert kinds[0] == "thinking" and whole.content[0].thinking
    if "tool_choice" in options:
        assert kinds == ["tool_use"] and whole.stop_reason == "tool_use"
        assert whole.content[0].input["city"] in ("Oslo", "Rome")


@pytest.mark.parametrize("stream", [False, True])
def test_messages_say_which_stop_sequence_ended_them(claude, stream):
    greedy = {"extra_body": {"temperature": 0.0}, "max_tokens": 12}
    text = claude.messages.create(**ask(claude, **greedy)).content[0].text
    options = ask(claude, **greedy, stop_sequences=["never said", text[4:6]])
    if stream:
        with claude.messages.stream(**options) as events:
            answer = events.get_final_message()
    else:
        answer = claude.messages.create(**options)
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", text[4:6])
    assert answer.content[0].text == text[: text.index(text[4:6])]


NOTE = {"type": "object", "properties": {"text": {"type": "string", "pattern": "^[a-z ]{30,40}$"}},
        "required": ["text"], "additionalProperties": False}  # fmt: skip


def test_messages_tells_arguments_while_they_are_written(claude):
    options = ask(claude, tools=[{"name": "note", "input_schema": NOTE, "strict": True}], max_tokens=100)
    options["tool_choice"] = {"type": "tool", "name": "note", "disable_parallel_tool_use": True}
    with claude.messages.stream(**options) as stream:
        pieces = [e.partial_json for e in stream if e.type == "input_json"]
        (block,) = stream.get_final_message().content
    assert len(pieces) > 10
    assert block.input == json.loads("".join(pieces)) and 30 <= len(block.input["text"]) <= 40


def test_responses_tell_arguments_while_they_are_written(client):
    tool = {"type": "function", "name": "note", "parameters": NOTE, "strict": True}
    with client.responses.stream(
        model="tiny", input="The river", tools=[tool], tool_choice="required", parallel_tool_calls=False
    ) as stream:
        pieces = [e.delta for e in stream if e.type == "response.function_call_arguments.delta"]
        (call,) = stream.get_final_response().output
    assert len(pieces) > 10
    assert call.arguments == "".join(pieces)


def test_messages_reads_calls_results_and_thoughts(claude):
    turns = [
        *SAY,
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "See."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": "rain"}, {"type": "text", "text": "And?"}]},
    ]  # fmt: skip
    tools = [{"name": "weather", "input_schema": PARAMETERS}]
    counted = claude.messages.count_tokens(model="tiny", messages=turns, tools=tools, system="Be brief.")
    answer = claude.messages.create(**ask(claude, messages=turns, tools=tools, system="Be brief.", max_tokens=4))
    usage = answer.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
    assert answer.stop_reason in ("max_tokens", "end_turn")


def test_messages_reads_what_the_newest_client_sends(claude):
    name = "mcp__files__" + "a" * 58  # longer than a name of OpenAI's
    tool = {"name": name, "input_schema": PARAMETERS, "eager_input_streaming": True}
    turns = [*SAY, {"role": "assistant", "content": "A boat"}, {"role": "system", "content": "Be brief."}, *SAY]
    body = {"model": "tiny", "messages": turns, "tools": [tool], "cache_control": {"type": "ephemeral"},
            "speed": "standard", "output_config": {"effort": "low"}}  # fmt: skip
    counted = claude.messages.count_tokens(**body)
    thinking = {"type": "enabled", "budget_tokens": 1024}
    answer = claude.messages.create(**body, max_tokens=4, thinking=thinking, extra_body={"temperature": 0.0})
    assert answer.usage.output_tokens_details.thinking_tokens == answer.usage.output_tokens == 4
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens > counted.input_tokens  # reasoning is open
    with pytest.raises(anthropic.BadRequestError, match="something else than text"):
        wrong = [{"role": "system", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}]}, *SAY]
        claude.messages.create(**ask(claude, messages=wrong))


def test_a_conversation_that_cannot_fit_is_counted_too(claude):
    """Clients count to know when to shorten."""
    turns = [{"role": "user", "content": "sea " * 600}]
    assert claude.messages.count_tokens(model="tiny", messages=turns).input_tokens > 512
    with pytest.raises(anthropic.BadRequestError, match="maximum context length is 512"):
        claude.messages.create(**ask(claude, messages=turns))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"extra_body": {"temperature": 1.5}}, "temperature"), ({"extra_body": {"top_q": 1}}, "did you mean 'top_p'"),
     ({"max_tokens": 0}, "max_tokens"), ({"tool_choice": {"type": "any"}}, "there are no tools")],
)  # fmt: skip
def test_messages_faults_have_anthropics_shape(claude, options, words):
    with pytest.raises(anthropic.BadRequestError, match=words) as caught:
        claude.messages.create(**ask(claude, **options))
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert caught.value.body["request_id"] == caught.value.response.headers["x-request-id"] == caught.value.request_id


def test_responses_stream_adds_up_to_the_answer(client):
    for options in (
        {"temperature": 0, "max_output_tokens": 12},
        {"temperature": 0, "max_output_tokens": 100, "reasoning": {"effort": "minimal"}, "instructions": "Be brief."},
        {"temperature": 0, "tools": [{"type": "function", "name": "weather", "parameters": PARAMETERS}],
         "tool_choice": "required", "parallel_tool_calls": False},
    ):  # fmt: skip
        whole = client.responses.create(model="tiny", input="The river", **options)
        events = list(client.responses.create(model="tiny", input="The river", stream=True, **options))
        last = events[-1].response
        assert events[-1].type == f"response.{whole.status}"
        assert {i.status for i in whole.output if i.type == "message"} <= {whole.status}
        assert [e.sequence_number for e in events] == list(range(len(events)))
        assert last.output_text == whole.output_text
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
        assert last.usage.output_tokens == whole.usage.output_tokens
        if "tools" in options:
            (call,) = whole.output
            assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
            turns = [{"role": "user", "content": "The river"}, *[o.to_dict() for o in whole.output],
                     {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]  # fmt: skip
            assert client.responses.create(model="tiny", input=turns, max_output_tokens=3).usage.output_tokens >= 1


def test_responses_choose_among_allowed_tools(client):
    name, parameters = "clock" * 14, {"type": "object", "properties": {}}
    tools = [{"type": "function", "name": n, "parameters": parameters} for n in ("weather", name)]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": name}]}
    for seed in range(3):
        answer = client.responses.create(model="tiny", input=f"The river {seed}", tools=tools, tool_choice=choice,
                                         parallel_tool_calls=False, reasoning={"effort": "none"})  # fmt: skip
        (call,) = answer.output
        assert (call.type, call.name) == ("function_call", name)
        assert answer.to_dict()["tool_choice"] == choice
        assert answer.usage.input_tokens_details.cache_write_tokens == 0
    sent_back = call.to_dict() | {"namespace": None, "caller": None}
    turns = [{"role": "user", "content": "The river"}, sent_back,
             {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]  # fmt: skip
    assert client.responses.create(model="tiny", input=turns, max_output_tokens=3).usage.output_tokens >= 1


def test_responses_keep_a_schema(client):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "name": "ok", "schema": schema, "strict": True}}
    answer = client.responses.create(model="tiny", input="The river", text=form, max_output_tokens=200)
    assert answer.status == "completed"
    assert isinstance(json.loads(answer.output_text)["ok"], bool)


def test_responses_refuse_what_needs_a_memory(client):
    with pytest.raises(openai.BadRequestError, match="not supported") as caught:
        client.responses.create(model="tiny", input="x", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


def test_responses_refuse_to_include_log_probabilities(client):
    options = {"model": "tiny", "input": "x", "max_output_tokens": 1}
    assert client.responses.create(**options, include=["reasoning.encrypted_content"]).id
    with pytest.raises(openai.BadRequestError, match=r"message\.output_text\.logprobs") as caught:
        client.responses.create(**options, include=["message.output_text.logprobs"])
    assert caught.value.param == "include"


def test_embeddings(client):
    texts = ["The river", "A boat is on the water", "The river"]
    found = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64
    vectors = np.array([d.embedding for d in found.data])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.array_equal(vectors[0], vectors[2]) and not np.allclose(vectors[0], vectors[1])
    plain = client.embeddings.create(model="tiny", input=texts[1], encoding_format="float")
    assert np.allclose(plain.data[0].embedding, vectors[1], atol=1e-6)
    assert found.usage.prompt_tokens > plain.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="input is empty"):
        client.embeddings.create(model="tiny", input="")


def test_the_second_turn_of_a_conversation_is_cached(client):
    long = "The river runs to the sea, and the sea is wide. " * 6
    first = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": long}], max_tokens=4)
    again = [{"role": "user", "content": long}, {"role": "assistant", "content": "A boat"}, *SAY]
    second = client.chat.completions.create(model="tiny", messages=again, max_tokens=4)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert 0 < cached <= first.usage.prompt_tokens
