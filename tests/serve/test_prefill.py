"""Where the last message is the assistant's, the answer goes on with it: what is new comes, and nothing else."""

import json

import anthropic
import httpx2 as httpx
import openai
import pytest

from headwater.chat import Chat
from headwater.tokenizer import Tokenizer

ASK = {"role": "user", "content": "The river runs"}
BEGUN = [ASK, {"role": "assistant", "content": "A boat"}]
CALL = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["n"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def begun_ids(tiny_model):
    """A prompt for the answer, and the text that it begins with."""
    tokenizer = Tokenizer.from_pretrained(tiny_model)
    ids, _ = Chat(tokenizer, "lfm2.5").render([ASK], add_generation_prompt=True).encode()
    return [*ids, *tokenizer.encode("A boat")]


def ask(client, **options):
    return client.chat.completions.create(model="tiny", messages=options.pop("messages", BEGUN), **options)


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_is_the_continuation_alone(client, begun_ids, stream):
    greedy = {"temperature": 0, "max_tokens": 12}
    wanted = client.completions.create(model="tiny", prompt=begun_ids, logprobs=0, **greedy).choices[0].logprobs
    if stream:
        chunks = list(ask(client, **greedy, logprobs=True, stream=True, stream_options={"include_usage": True}))
        usage, choices = chunks[-1].usage, [c.choices[0] for c in chunks if c.choices]
        text = "".join(c.delta.content or "" for c in choices)
        rows = [row for c in choices if c.logprobs for row in c.logprobs.content]
    else:
        answer = ask(client, **greedy, logprobs=True)
        usage, text, rows = answer.usage, answer.choices[0].message.content, answer.choices[0].logprobs.content
    assert usage.prompt_tokens == len(begun_ids)
    assert [r.logprob for r in rows] == pytest.approx(wanted.token_logprobs, abs=1e-3)
    assert text and not text.startswith("A boat")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("content", ["A boat", [{"type": "text", "text": "A "}, {"type": "text", "text": "boat"}]])
def test_anthropics_clients_prefill(client, claude, begun_ids, stream, content):
    turns = [ASK, {"role": "assistant", "content": content}]
    options = {"model": "tiny", "messages": turns, "max_tokens": 12, "extra_body": {"temperature": 0.0}}
    if stream:
        with claude.messages.stream(**options) as events:
            answer = events.get_final_message()
    else:
        answer = claude.messages.create(**options)
    wanted = ask(client, temperature=0, max_tokens=12).choices[0].message.content
    assert "".join(b.text for b in answer.content if b.type == "text") == wanted
    counted = claude.messages.count_tokens(model="tiny", messages=turns).input_tokens
    assert counted == answer.usage.input_tokens + answer.usage.cache_read_input_tokens == len(begun_ids)


def test_a_new_turn_can_be_asked_for(client, served, begun_ids):
    def tokens(**extra):
        return ask(client, max_tokens=1, extra_body=extra).usage.prompt_tokens

    assert tokens() == len(begun_ids)
    assert tokens(continue_final_message=True, add_generation_prompt=False) == len(begun_ids)
    assert tokens(add_generation_prompt=False) == len(begun_ids)
    fresh = tokens(continue_final_message=False)
    assert fresh == tokens(add_generation_prompt=True) > len(begun_ids)
    response = client.responses.create(model="tiny", input=BEGUN, max_output_tokens=1)  # knows no such thing
    assert response.usage.input_tokens == fresh
    told = httpx.post(f"{served.url}/tokenize", json={"messages": BEGUN}, timeout=600).json()
    assert told["tokens"] == begun_ids


def test_an_empty_message_is_a_new_turn(client):
    empty = ask(client, messages=[ASK, {"role": "assistant", "content": ""}], max_tokens=1)
    assert empty.usage.prompt_tokens == ask(client, messages=[ASK], max_tokens=1).usage.prompt_tokens
    thinks = [ask(client, messages=m, max_tokens=4, extra_body={"thinking_budget": 4}, temperature=0)
              for m in ([ASK, {"role": "assistant", "content": ""}], [ASK])]  # fmt: skip
    assert thinks[0].usage.prompt_tokens == thinks[1].usage.prompt_tokens > empty.usage.prompt_tokens


def test_a_thought_that_has_begun_goes_on_as_one(client):
    messages = [ASK, {"role": "assistant", "content": "<think>The sea"}]
    message = ask(client, messages=messages, max_tokens=6, seed=1).choices[0].message
    assert message.reasoning_content and not message.content


def test_a_form_holds_for_the_message_and_its_continuation(client):
    for seed, begun in enumerate(('{"n"', '{"n": ', '{"n": 4', '{"n": 4}')):
        messages = [ASK, {"role": "assistant", "content": begun}]
        choice = ask(client, messages=messages, response_format=FORM, seed=seed, max_tokens=100).choices[0]
        whole = begun + choice.message.content
        assert choice.finish_reason == "stop"
        assert 0 <= json.loads(whole)["n"] <= 999


def test_a_call_may_follow_the_text(client):
    choice = ask(client, tools=[CLOCK], tool_choice="required", parallel_tool_calls=False, seed=1).choices[0]
    assert [c.function.name for c in choice.message.tool_calls] == ["clock"]
    assert choice.finish_reason == "tool_calls" and not choice.message.content


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [CALL]}]}, "messages", "has tool_calls"),
        ({"extra_body": {"thinking_budget": 5}}, "thinking_budget", "no reasoning can open"),
        ({"extra_body": {"reasoning_effort": "low"}}, "reasoning_effort", "no reasoning can open"),
        ({"messages": [ASK, {"role": "assistant", "content": "a", "reasoning_content": "hm"}],
          "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, "messages", "has reasoning"),
        ({"messages": [ASK], "extra_body": {"continue_final_message": True}}, "messages", "has the role 'user'"),
        ({"extra_body": {"continue_final_message": True, "add_generation_prompt": True}}, None, "contradict"),
        ({"response_format": FORM}, "response_format.json_schema.schema", "no answer of this form begins"),
    ],
)  # fmt: skip
def test_what_cannot_go_on_is_refused(client, options, param, words):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    assert words in caught.value.body["message"]
    assert caught.value.body["param"] == param


def test_anthropics_refusals(claude):
    use = {"type": "tool_use", "id": "t", "name": "clock", "input": {}}
    for options, words in (
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking: the answer continues the last message"),
        ({"messages": [ASK, {"role": "assistant", "content": [use]}]}, "messages: .* has tool_calls"),
    ):
        with pytest.raises(anthropic.BadRequestError, match=words):
            claude.messages.create(**({"model": "tiny", "messages": BEGUN, "max_tokens": 9} | options))
