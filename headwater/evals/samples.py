"""Text that a model writes while it is trained: a few fixed prompts, continued anew at each evaluation."""

from collections.abc import Sequence
from typing import Any

from headwater.generate import generate
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer

PARAMS = SamplingParams(max_tokens=48, temperature=0.3, min_p=0.1, seed=1)


class Samples:
    """sample() -> {prompt: its continuation}; the model's mode stays, and so does torch's random generator.

    `model`: whatever `generate` takes.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, prompts: Sequence[str], params: SamplingParams = PARAMS
    ) -> None:
        if not prompts:
            raise ValueError("there is no prompt to continue")
        self._model, self._tokenizer, self._prompts, self._params = model, tokenizer, list(prompts), params

    def __call__(self) -> dict[str, str]:
        was_training = self._model.training
        self._model.eval()
        try:
            ids = [self._tokenizer.encode(prompt, bos=True) for prompt in self._prompts]
            done = generate(self._model, ids, self._params, tokenizer=self._tokenizer)
        finally:
            self._model.train(was_training)
        return {prompt: each.text for prompt, each in zip(self._prompts, done, strict=True)}
