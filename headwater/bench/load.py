"""Users at a server: seeded conversations over HTTP, streamed and timed token by token as a client sees them.

The same seed asks every server the same: questions are made of common words to lengths in tokens, turns follow each
other in a conversation, and the next conversation follows at once. Standard library alone, one thread a user. Not for
starting servers (load_servers) nor for what the times mean together (load_report).
"""

import contextlib
import http.client
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

_COMMON = """
the of and to in a is that for it was on are as with they be at this have from or one had by word but not what
all were we when your can said there use an each which she do how their if will up other about out many then
them these so some her would make like him into time has look two more write go see number no way could people
my than first water been call who oil its now find long down day did get come made may part river sun house
letter mountain answer study still learn plant cover food between state keep never last thought city tree cross
farm hard start might story saw far sea draw left late run while press close night real life few north open seem
together next white children begin got walk example ease paper group always music those both mark often until
mile feet
"""
_WORDS = _COMMON.split()
_PAUSE_AFTER_ERROR = 0.5
_TIMEOUT = 900.0
"""Seconds of silence that a client bears. A long queue is a result, not a fault."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What users do. Lengths in tokens are log-normal: (median, sigma of the logarithm, least, most); they are those of
    a context of 4096, and shorter in proportion where `context` is."""

    context: int = 4096
    first: tuple[float, float, int, int] = (150, 1.0, 12, 1500)
    later: tuple[float, float, int, int] = (40, 0.8, 6, 400)
    answer: tuple[float, float, int, int] = (120, 0.6, 16, 400)
    system: tuple[int, ...] = (60, 120, 240)
    goes_on: float = 0.67
    most_turns: int = 8

    def length(self, draw: random.Random, of: tuple[float, float, int, int]) -> int:
        """A draw from one of the distributions."""
        median, sigma, least, most = of
        return max(1, round(self._scale * max(least, min(most, draw.lognormvariate(math.log(median), sigma)))))

    @property
    def systems(self) -> list[int]:
        """Lengths of the system prompts."""
        return [max(1, round(self._scale * n)) for n in self.system]

    @property
    def _scale(self) -> float:
        return min(1.0, self.context / 4096)


@dataclass(frozen=True)
class Turn:
    """A question, and how many tokens its answer may have."""

    question: str
    answer_tokens: int


class Words:
    """Text of so many tokens. count: tokens of a text by the model's tokenizer."""

    def __init__(self, count: Callable[[str], int]) -> None:
        sample = self._some(random.Random(1), 2000)
        self._tokens_each = max(count(sample) / 2000, 1e-3)

    def text(self, draw: random.Random, tokens: int) -> str:
        """About `tokens` tokens of words."""
        return self._some(draw, max(1, round(tokens / self._tokens_each)))

    @staticmethod
    def _some(draw: random.Random, count: int) -> str:
        """The earlier in the list, the more frequent, as in texts."""
        return " ".join(_WORDS[int(len(_WORDS) * draw.random() ** 2)] for _ in range(count)).capitalize() + "."


def conversations(words: Words, mix: Mix, seed: int, user: int) -> Iterator[tuple[str, list[Turn]]]:
    """(system prompt, turns) without end. System prompts are few and shared by all users; all else is this user's."""
    systems = [words.text(random.Random(f"{seed} system {n}"), n) for n in mix.systems]
    draw = random.Random(f"{seed} user {user}")
    while True:
        system = draw.choice(systems)
        turns: list[Turn] = []
        while len(turns) < mix.most_turns and (not turns or draw.random() < mix.goes_on):
            question = words.text(draw, mix.length(draw, mix.later if turns else mix.first))
            turns.append(Turn(question, mix.length(draw, mix.answer)))
        yield system, turns


@dataclass
class Request:
    """One turn as the client saw it; times in seconds, `start` since the window opened.

    events: when each event with text came, since `start`. answer_tokens: the server's own count, or of events where
    the answer was cut off by the window's end. cached: prompt tokens the server says it had; -1 where it says nothing.
    """

    user: int
    turn: int
    start: float
    events: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cached: int = -1
    whole: bool = False
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go. chat: /v1/chat/completions, else /v1/completions with a plain transcript; headers: more."""

    url: str
    model: str
    chat: bool = True
    headers: tuple[tuple[str, str], ...] = ()


class _User(threading.Thread):
    """Talks until told to stop."""

    def __init__(
        self, number: int, target: Target, talks: Iterator[tuple[str, list[Turn]]], mix: Mix, opens: float,
        stop: threading.Event, said_again: Callable[[str, int], str],
    ) -> None:  # fmt: skip
        super().__init__(name=f"user-{number}", daemon=True)
        self.number, self.requests = number, list[Request]()
        self._target, self._talks, self._mix, self._opens, self._over = target, talks, mix, opens, stop
        self._said_again = said_again
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        for system, turns in self._talks:
            history = [{"role": "system", "content": system}]
            for index, turn in enumerate(turns):
                if self._over.is_set():
                    return
                history.append({"role": "user", "content": turn.question})
                request = Request(self.number, index, time.perf_counter() - self._opens)
                self.requests.append(request)
                text = self._ask(request, history, turn.answer_tokens)
                if request.error is not None:
                    self._over.wait(_PAUSE_AFTER_ERROR)
                    break
                history.append({"role": "assistant", "content": self._said_again(text, request.answer_tokens)})
                if request.prompt_tokens + request.answer_tokens > 0.6 * self._mix.context:
                    break

    def hang_up(self) -> None:
        """End what is being received."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, request: Request, history: Sequence[dict[str, str]], most: int) -> str:
        said: list[str] = []
        try:
            for chunk in self._stream(body_of(self._target, history, most, self.number)):
                now = time.perf_counter() - self._opens - request.start
                text = take(request, chunk)
                if text and not self._over.is_set():
                    said.append(text)
                    request.events.append(now)
            request.whole = not self._over.is_set()
            if request.whole and not request.events:
                request.error = "an answer without text"
        except (OSError, ValueError, http.client.HTTPException) as e:
            if not self._over.is_set():
                request.error = f"{type(e).__name__}: {e}"[:300]
        finally:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        if not request.whole or not request.answer_tokens:
            request.answer_tokens = len(request.events)
        return "".join(said)

    def _stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        parts = urlsplit(self._target.url)
        self._connection = connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT)
        path = "/v1/chat/completions" if self._target.chat else "/v1/completions"
        headers = {"Content-Type": "application/json", **dict(self._target.headers)}
        connection.request("POST", parts.path + path, json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"{response.status}: {response.read(200)!r}")
        for line in response:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


def body_of(target: Target, history: Sequence[dict[str, str]], most: int, user: int) -> dict[str, Any]:
    """A greedy streamed request, in fields that every server of OpenAI's API reads."""
    common = {
        "model": target.model, "max_tokens": most, "temperature": 0, "stream": True, "user": f"user-{user}",
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    if target.chat:
        return common | {"messages": list(history)}
    transcript = "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in history)
    return common | {"prompt": f"{transcript}\n\nAssistant:"}


def take(request: Request, chunk: dict[str, Any]) -> str:
    """Note the counts of a chunk; its text. ValueError: it carries an error."""
    if chunk.get("error"):
        raise ValueError(f"in the stream: {chunk['error']}"[:300])
    if usage := chunk.get("usage"):
        request.prompt_tokens, request.answer_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        request.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", -1)
    choices = chunk.get("choices") or [{}]
    return choices[0].get("text") or (choices[0].get("delta") or {}).get("content") or ""


def drive(
    target: Target,
    words: Words,
    mix: Mix,
    *,
    users: int,
    seconds: float,
    seed: int = 0,
    spelled_back: bool = True,
    watch: Callable[[], Any] = lambda: None,
) -> tuple[list[Request], list[Any]]:
    """Let `users` talk for `seconds`; (their requests, what `watch` said each second).

    spelled_back: a next turn holds the answer that came. False: made-up words of its length, for models whose tokens no
    text spells back. Users come within the first two seconds. Warm the server up before.
    """
    made_up = random.Random(f"{seed} answers")

    def said_again(text: str, tokens: int) -> str:
        return text if spelled_back else words.text(made_up, tokens)

    opens, stop = time.perf_counter(), threading.Event()
    crowd = [
        _User(n, target, conversations(words, mix, seed, n), mix, opens, stop, said_again) for n in range(users)
    ]  # fmt: skip
    seen = []
    for user in crowd:
        user.start()
        time.sleep(min(2.0 / users, 0.1 * seconds / users))
    while (left := opens + seconds - time.perf_counter()) > 0:
        seen.append(watch())
        time.sleep(min(1.0, left))
    stop.set()
    for user in crowd:
        user.hang_up()
    for user in crowd:
        user.join()
    return [r for user in crowd for r in user.requests], seen


def as_dict(request: Request) -> dict[str, Any]:
    """JSON-ready, times to a tenth of a millisecond."""
    values = asdict(request)
    return values | {"start": round(request.start, 4), "events": [round(t, 4) for t in request.events]}
