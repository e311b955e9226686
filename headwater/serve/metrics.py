"""Counters and histograms for Prometheus, in a registry of their own: requests, tokens, waiting, times."""

from typing import Any

from headwater import optional
from headwater.serve.front import Front

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """What /metrics shows. Token counts are read from the front when asked."""

    def __init__(self, front: Front) -> None:
        p = optional.load("prometheus_client", extra="serve")
        self._library, self._families, self._front = p, optional.load("prometheus_client.core", extra="serve"), front
        self.registry = p.CollectorRegistry()
        mine: dict[str, Any] = {"registry": self.registry}
        self.requests = p.Counter("headwater_requests", "Requests by route and status.", ["route", "status"], **mine)
        first = p.Histogram("headwater_first_token_seconds", "From a request's arrival to its first token.",
                            buckets=_SECONDS, **mine)  # fmt: skip
        gap = p.Histogram("headwater_token_gap_seconds", "Between two tokens of an answer.", buckets=_SECONDS, **mine)
        front.times.first, front.times.gap = first.observe, gap.observe
        self.registry.register(self)

    def collect(self) -> Any:
        """Of prometheus_client's collector protocol."""
        core = self._families
        engine = self._front.engine
        counters, cache = engine.counters, engine.prefix_cache
        hits = cache.counters.hit_tokens if cache else 0
        for name, value, says in (
            ("prompt_tokens", counters.prompt_tokens, "Tokens of prompts that were read."),
            ("cached_tokens", hits, "Tokens of prompts that the prefix cache held."),
            (
                "reread_tokens",
                counters.tokens_again,
                "Tokens of answers read into the prefix cache while nobody waited.",
            ),
            ("generated_tokens", counters.answer_tokens, "Tokens of answers."),
            ("finished_answers", counters.done, "Answers that were written to their end."),
            ("cancelled_answers", counters.cancelled, "Answers whose client went away, or that took too long."),
            ("failed_answers", counters.failed, "Answers that could not be written."),
        ):
            yield core.CounterMetricFamily(f"headwater_{name}", says, value=value)
        for name, value, says in (
            ("running_answers", engine.running, "Answers that hold a slot."),
            ("waiting_answers", engine.waiting, "Answers that wait for a slot."),
            ("slots", self._front.slots, "Slots."),
        ):
            yield core.GaugeMetricFamily(f"headwater_{name}", says, value=value)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return self._library.generate_latest(self.registry)
