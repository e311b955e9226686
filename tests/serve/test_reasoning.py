"""Reasoning before a form of answer, and what a request may say about reasoning."""

import anthropic
import httpx2 as httpx
import numpy as np
import openai
import pytest
from serve_running import running

from headwater.chat import Chat
from headwater.sampling import SamplingParams
from headwater.serve.grammar import Format
from headwater.serve.guide import AnswerMask, bits
from headwater.serve.job import Job, Planner
from headwater.tokenizer import Tokenizer

ASK = {"role": "user", "content": "The river runs"}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
YES = Format("regex", "yes|no")
VOCABULARY = 100


def tokens(words):
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


class Counting:
    """A grammar of the tokens 3, 4, 5, ... in this order, in a mask that is shorter than the vocabulary."""

    def __init__(self):
        self.at = 3

    def take(self, token):
        assert token == self.at
        self.at += 1

    def allowed(self):
        return bits(32, set(range(32)) - {self.at})


def mask(**options):
    return AnswerMask(
        VOCABULARY, ends=[2], grammar=Counting(), close=b"</think>", token_bytes=lambda i: f"<{i}>".encode(), **options
    )


@pytest.mark.parametrize("opening", [7, 70])
def test_a_grammar_waits_for_a_thought_that_the_model_opens(opening):
    free = AnswerMask(
        VOCABULARY, barred=[1], ends=[2], grammar=Counting(), close=b"<9>", opening=opening,
        token_bytes=lambda i: f"<{i}>".encode(),
    )  # fmt: skip
    assert tokens(free([])) == {3, opening}
    inside = set(range(VOCABULARY)) - {1, 2}
    assert tokens(free([opening])) == inside
    assert tokens(free([opening, opening, 4])) == inside
    assert tokens(free([opening, opening, 4, 9])) == {3}  # the grammar is where it was
    assert tokens(free([opening, opening, 4, 9, 3])) == {4}


def test_a_masked_answer_may_come_at_once():
    at_once = mask(barred=[], opening=70)
    assert tokens(at_once([])) == {3, 70}
    assert tokens(at_once([3])) == {4}
    assert tokens(at_once([3, 4])) == {5}
    assert tokens(mask(barred=[])([])) == set(range(VOCABULARY)) - {2}  # here the prompt has opened it


@pytest.fixture(scope="module")
def planner():
    text = "user assistant system tool the cat sat on a mat yes no " * 20
    tokenizer = Tokenizer.train([text], 600, extra_special=("<image>", "<think>", "</think>"))
    ends = sorted(tokenizer.eos_ids)
    return Planner(tokenizer, Chat(tokenizer, "lfm2.5"), SamplingParams(), 512, tokenizer.vocab_size, ends)


@pytest.mark.parametrize(
    ("options", "thinks"),
    [
        ({"format": YES}, True),
        ({"tools": [CLOCK], "choice": "required"}, True),
        ({"format": YES, "thinking": False}, False),
        ({"format": YES, "messages": [ASK, {"role": "assistant", "content": "ye"}]}, False),
        ({"format": YES, "messages": [ASK, {"role": "assistant", "content": ""}]}, True),
    ],
)
def test_a_form_leaves_room_for_a_thought_unless_reasoning_is_off(planner, options, thinks):
    open_id, close_id = (planner.tokenizer.markup_id(t) for t in ("<think>", "</think>"))
    job = Job(**{"messages": [ASK], "sampling": {}} | options)
    (answer,) = planner.plan(job).work.masks
    at_first = tokens(answer([]))
    assert (open_id in at_first) == thinks
    assert not at_first & set(planner.tokenizer.eos_ids)
    if thinks:
        (thought,) = planner.plan(job).work.masks
        assert len(tokens(thought([open_id]))) > 250
        assert tokens(thought([open_id, close_id])) == at_first - {open_id}


def test_a_thought_that_the_prompt_opened_is_not_opened_again(planner):
    open_id = planner.tokenizer.markup_id("<think>")
    plan = planner.plan(Job(messages=[ASK], sampling={}, format=YES, thinking=True))
    assert plan.work.ids[-1] == open_id
    assert len(tokens(plan.work.masks[0]([]))) > 250


@pytest.mark.parametrize(
    "extra",
    [
        {"thinking_budget": 5, "reasoning_effort": "none"},
        {"thinking_budget": 5, "chat_template_kwargs": {"enable_thinking": False}},
        {"thinking_budget": 0, "chat_template_kwargs": {"enable_thinking": True}},
        {"thinking_budget": 0, "reasoning_effort": "low"},
    ],
)
def test_contradictions_about_reasoning_are_refused(served, extra):
    body = {"messages": [ASK], "max_tokens": 1} | extra
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=600)
    assert answer.status_code == 400
    fault = answer.json()["error"]
    assert fault["param"] == "thinking_budget" and "leave one out" in fault["message"]


def test_a_model_that_does_not_reason_says_so_in_the_callers_words(tiny_model):
    with running(tiny_model, style="lfm2", slots=1) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            for extra, param in (
                ({"reasoning_effort": "low"}, "reasoning_effort"),
                ({"thinking_budget": 5}, "thinking_budget"),
                ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
            ):
                with pytest.raises(openai.BadRequestError, match=f"leave {param} out") as caught:
                    client.chat.completions.create(model="tiny", messages=[ASK], extra_body=extra)
                assert caught.value.param == param
            with pytest.raises(openai.BadRequestError, match=r"leave reasoning\.effort out"):
                client.responses.create(model="tiny", input="The river", reasoning={"effort": "low"})
        with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as claude:
            thinking = {"type": "enabled", "budget_tokens": 5}
            with pytest.raises(anthropic.BadRequestError, match="does not reason; leave thinking out"):
                claude.messages.create(model="tiny", messages=[ASK], max_tokens=9, thinking=thinking)
