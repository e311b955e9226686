"""Conversations become documents whose mask covers what the assistant says and nothing else."""

import pytest

from headwater.chat import Chat
from headwater.data.conversations import encode_conversations
from headwater.tokenizer import Tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a river?"},
    {"role": "assistant", "content": "Water that flows."},
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "You are welcome!"},
]


@pytest.fixture(scope="module")
def chat():
    return Chat(Tokenizer.train(["What is a river? Water that flows. You are welcome!"] * 3, 330), style="lfm2")


def test_the_mask_covers_answers_and_their_end_tags(chat):
    (document,) = encode_conversations([TALK], chat)
    learnt = [i for i, m in zip(document.ids, document.mask, strict=True) if m]
    text = chat.tokenizer.decode(learnt, skip_special=False)
    assert text.replace("\n", "") == "Water that flows.<|im_end|>You are welcome!<|im_end|>"


def test_long_conversations_are_left_out_whole(chat):
    (full,) = encode_conversations([TALK], chat)
    assert list(encode_conversations([TALK, TALK[1:3]], chat, longest=len(full.ids) - 1)) == list(
        encode_conversations([TALK[1:3]], chat)
    )


def test_faults_name_the_conversation(chat):
    with pytest.raises(ValueError, match="conversation 1: "):
        list(encode_conversations([TALK, [{"role": "narrator", "content": "x"}]], chat))
    with pytest.raises(ValueError, match="conversation 0 has no assistant text"):
        list(encode_conversations([TALK[:2]], chat))
