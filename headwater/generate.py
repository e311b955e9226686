"""The plain loop: prefill, sample, step, stop. The reference that every engine must match token for token.

Serves a batch of unequal prompts in one Cache; not a server (no scheduling, no request may join a running batch).
"""

import time
from collections.abc import Sequence

import torch

from headwater.cache import Cache
from headwater.completion import Completion, Logprob, OnText, Writer
from headwater.model import Lfm2
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer

__all__ = ["Completion", "Logprob", "OnText", "generate", "pick"]

_LEAST_TEMPERATURE = 1e-30


@torch.inference_mode()
def generate(
    model: Lfm2,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008 (frozen)
    *,
    tokenizer: Tokenizer | None = None,
    on_text: OnText | None = None,
    cache: Cache | None = None,
    past: Sequence[Sequence[int]] | None = None,
    chunk_size: int = 512,
    skip_special: bool = True,
) -> list[Completion]:
    """Continue each prompt (token ids); row i of the result belongs to prompt i and does not depend on the others.

    tokenizer: needed for text, stop texts and on_text. cache: earlier tokens of each row, continued and left holding
    everything but each row's last sampled token. past: the ids that the cache holds, which a repetition penalty needs
    to know. chunk_size: tokens of a prompt per forward call. skip_special: False
    leaves control tokens other than the end in the text by their names, as a reader of tool calls needs them.
    ValueError on an empty prompt, ids outside the vocabulary, or a prompt that leaves no room in the context.
    """
    rows = _rows(model, prompts, params, tokenizer, cache, _past(past, cache, len(prompts)), skip_special)
    if on_text is not None and tokenizer is None:
        raise ValueError("on_text came without a tokenizer; pass tokenizer= to turn ids into text")
    cache = cache or model.new_cache(len(prompts))
    start = time.perf_counter()
    logits_bv = _prefill(model, prompts, cache, chunk_size)
    prefilled = time.perf_counter()
    while True:
        for b, row in enumerate(rows):
            if not row.done:
                text = row.take(logits_bv[b])
                row.completion.prefill_seconds = prefilled - start
                row.completion.decode_seconds = time.perf_counter() - prefilled
                if text and on_text is not None:
                    on_text(b, text)
        if all(row.done for row in rows):
            return [row.completion for row in rows]
        running = torch.tensor([[not row.done] for row in rows], device=cache.device)
        newest = torch.tensor([[row.completion.ids[-1]] for row in rows], device=cache.device)
        logits_bv = model(newest, attention_mask=running, cache=cache)[:, -1].float()


def _rows(
    model: Lfm2,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    tokenizer: Tokenizer | None,
    cache: Cache | None,
    past_ids: Sequence[Sequence[int]] | None,
    skip_special: bool,
) -> list["_Row"]:
    if not prompts:
        raise ValueError("prompts is empty; allowed: at least one list of token ids")
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    if len(each) != len(prompts):
        raise ValueError(f"{len(each)} SamplingParams came for {len(prompts)} prompts; give one, or one for each")
    c = model.config
    rows = []
    for i, (prompt, p) in enumerate(zip(prompts, each, strict=True)):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} is empty; allowed: at least one token (the BOS token alone will do)")
        if not all(0 <= t < c.vocab_size for t in prompt):
            raise ValueError(
                f"prompt {i} has token ids outside 0..{c.vocab_size - 1}; is it the model's own tokenizer?"
            )
        past = 0 if cache is None else cache.lengths[i]
        room = c.max_positions - past - len(prompt)
        if room < 1:
            raise ValueError(
                f"prompt {i} has {past + len(prompt)} tokens; the model's context is {c.max_positions}, at least one "
                "of it for the answer: shorten the prompt"
            )
        if p.repetition_penalty != 1.0 and past and past_ids is None:
            raise ValueError("repetition_penalty and a cache came without past; pass past=the ids that the cache holds")
        eos = frozenset(c.eos_ids) | (frozenset(tokenizer.eos_ids) if tokenizer else frozenset())
        seen = [*(past_ids[i] if past_ids else ()), *prompt]
        rows.append(_Row(seen, Writer(p, min(p.max_tokens, room), eos, tokenizer, skip_special), model.device))
    return rows


def _past(past: Sequence[Sequence[int]] | None, cache: Cache | None, num_rows: int) -> Sequence[Sequence[int]] | None:
    lengths = [0] * num_rows if cache is None else cache.lengths
    if past is not None and [len(ids) for ids in past] != lengths:
        raise ValueError(f"past has rows of {[len(ids) for ids in past]} tokens; the cache holds {lengths}")
    return past


def _prefill(model: Lfm2, prompts: Sequence[Sequence[int]], cache: Cache, chunk_size: int) -> torch.Tensor:
    """Feed the prompts in chunks; fp32 logits (b, v) of each row's last token."""
    longest = max(map(len, prompts))
    cache.reserve(max(cache.lengths) + longest)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=cache.device)
    valid = torch.zeros_like(ids, dtype=torch.bool)
    for b, prompt in enumerate(prompts):
        ids[b, : len(prompt)] = torch.tensor(prompt, device=cache.device)
        valid[b, : len(prompt)] = True
    last_bd = torch.zeros(len(prompts), model.config.hidden_size, device=cache.device, dtype=model.dtype)
    for start in range(0, longest, chunk_size):
        span = slice(start, start + chunk_size)
        hidden = model.hidden(ids[:, span], attention_mask=valid[:, span], cache=cache)
        for b, prompt in enumerate(prompts):
            if start < len(prompt) <= start + chunk_size:
                last_bd[b] = hidden[b, len(prompt) - 1 - start]
    return model.head(last_bd).logits().float()


class _Row:
    """One sequence being written: its sampler state and its answer so far."""

    def __init__(self, seen: list[int], writer: Writer, device: torch.device) -> None:
        self.params, self.writer, self.completion = writer.params, writer, writer.completion
        self._seen = torch.tensor(sorted(set(seen)), device=device)
        self._written = torch.zeros(0, dtype=torch.long, device=device)
        self._generator = torch.Generator(device).manual_seed(self.params.seed)

    @property
    def done(self) -> bool:
        return self.writer.done

    def take(self, logits_v: torch.Tensor) -> str:
        """Sample from fp32 logits (v,), record the token; the text that became certain."""
        token = self.writer.forced()
        if token is None:
            banned = self._seen.new_tensor(self.writer.forbidden(), dtype=torch.long)
            chosen_from = logits_v.scatter(0, banned, -torch.inf)
            token = pick(chosen_from, self.params, self._seen, self._generator, self._written)
        self._written = torch.cat([self._written, self._written.new_tensor([token])])
        if self.params.repetition_penalty != 1.0 and token not in self._seen:
            self._seen = torch.cat([self._seen, self._seen.new_tensor([token])])
        wanted = self.params.logprobs
        return self.writer.push(token, None if wanted is None else _logprob(logits_v, token, wanted))


def _logprob(logits_v: torch.Tensor, token: int, num_top: int) -> Logprob:
    logprobs = logits_v.log_softmax(-1)
    top = logprobs.topk(min(num_top, logprobs.shape[-1]))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Logprob(token, logprobs[token].item(), tuple(pairs))


def pick(
    logits_v: torch.Tensor,
    params: SamplingParams,
    seen_ids: torch.Tensor,
    generator: torch.Generator,
    written_ids: torch.Tensor | None = None,
) -> int:
    """One token id from fp32 logits (v,) by the rules of SamplingParams, in their order, with a draw from `generator`.

    seen_ids: what the repetition penalty covers, each once; written_ids: the answer so far, for the other penalties.
    """
    if params.repetition_penalty != 1.0 and len(seen_ids):
        seen = logits_v[seen_ids]
        penalised = torch.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
        logits_v = logits_v.scatter(0, seen_ids, penalised)
    if (params.presence_penalty or params.frequency_penalty) and written_ids is not None and len(written_ids):
        ids, counts = written_ids.unique(return_counts=True)
        less = params.presence_penalty + params.frequency_penalty * counts.float()
        logits_v = logits_v.index_add(0, ids, -less)
    for token, added in params.logit_bias:
        logits_v = logits_v.index_add(0, seen_ids.new_tensor([token], dtype=torch.long), logits_v.new_tensor([added]))
    if params.temperature == 0:
        return int(logits_v.argmax())
    # Below, fp32 logits would be infinite and their shares NaN; it is greedy long before.
    temperature = max(params.temperature, _LEAST_TEMPERATURE)
    probs, ids = (logits_v / temperature).softmax(-1).sort(descending=True, stable=True)
    if params.top_k:
        probs, ids = probs[: params.top_k], ids[: params.top_k]
        probs = probs / probs.sum()
    if params.top_p < 1:
        before = probs.cumsum(0) - probs
        probs = probs[before < params.top_p]
        probs = probs / probs.sum()
    if params.min_p > 0:
        probs = probs[probs >= params.min_p * probs[0]]
    draw = torch.rand((), generator=generator, device=probs.device) * probs.sum()
    place = torch.searchsorted(probs.cumsum(0), draw, right=True).clamp_(max=len(probs) - 1)
    return int(ids[place])
