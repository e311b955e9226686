"""A run's numbers in TensorBoard or Weights & Biases. Hooks of train.loop; the packages come with headwater[track].

Not needed to follow a run: the log and the page (follow.py) need neither.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater import optional
from headwater.train.loop import Step


def numbers_of(step: Step) -> dict[str, float]:
    """Everything numeric of a step by name, in the groups the trackers make of slashes."""
    speed = step.tokens / max(step.seconds, 1e-9)
    own = {"lr": step.lr, "gradient_norm": step.gradient_norm, "tokens": step.done.tokens, "tokens_per_second": speed}
    return {**{f"train/{k}": v for k, v in {**own, **step.done.metrics}.items()}, **step.evaluation}


class TensorBoard:
    """Scalars of each step into event files in `directory`; a resumed run hides the steps that it does again."""

    def __init__(self, directory: str | Path) -> None:
        optional.load("tensorboard", extra="track")
        self._directory, self._writer = Path(directory), None

    _writer: Any

    def __call__(self, step: Step) -> None:
        if self._writer is None:
            writers = optional.load("torch.utils.tensorboard", extra="track")
            self._writer = writers.SummaryWriter(str(self._directory), purge_step=step.done.step)
        for name, value in numbers_of(step).items():
            self._writer.add_scalar(name, value, step.done.step)

    def sample(self, step: int, samples: Mapping[str, str]) -> None:
        """Keep generated texts."""
        for prompt, text in samples.items():
            self._writer.add_text(prompt, text, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """Each step into a run of `project`; `options` go to wandb.init as they are (id, resume, mode, config, dir)."""

    def __init__(self, project: str, **options: Any) -> None:
        self._run = optional.load("wandb", extra="track").init(project=project, **options)

    def __call__(self, step: Step) -> None:
        self._run.log(numbers_of(step), step=step.done.step)

    def sample(self, step: int, samples: Mapping[str, str]) -> None:
        """Keep generated texts."""
        table = optional.load("wandb", extra="track").Table(
            columns=["prompt", "text"], data=[[prompt, text] for prompt, text in samples.items()]
        )
        self._run.log({"samples": table}, step=step)

    def close(self) -> None:
        self._run.finish()
