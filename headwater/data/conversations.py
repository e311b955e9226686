"""Conversations to documents for SFT: the chat format's own renderer gives the ids and says which ones the assistant
wrote.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from headwater.chat import Chat
from headwater.data.pack import Document


def encode_conversations(
    conversations: Iterable[list[dict[str, Any]]], chat: Chat, *, longest: int | None = None
) -> Iterator[Document]:
    """One Document a conversation (a list of messages), with only the assistant's tokens to be learnt.

    Conversations of more than `longest` tokens are left out: a cut answer teaches to stop anywhere.
    ValueError names the conversation: not well-formed, or nothing in it to learn.
    """
    for number, messages in enumerate(conversations):
        try:
            ids, mask = chat.render(messages).encode()
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"conversation {number}: {e}") from e
        if not any(mask):
            raise ValueError(
                f"conversation {number} has no assistant text to learn from; its roles: {[m['role'] for m in messages]}"
            )
        if longest is None or len(ids) <= longest:
            yield Document(ids, mask)
