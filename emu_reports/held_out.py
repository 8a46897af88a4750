"""The held-out loss of a finished training: each number with its step, read in one place.

The published weights are those of the last step, even if an earlier step had a lower loss on held-out rows
(emu_models/training/early_stopping.py says why). So there are two steps, and a loss is always given with its step. If
the published weights learned all rows, the losses are those of the training that found the number of steps.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from emu_data.formatting import format_count, format_share, format_significant

LOSS_DIGITS = 3  # significant digits of a loss; chosen here


@dataclass(frozen=True)
class HeldOut:
    """The held-out loss of the published weights, which are those of the last step, and of the best step's weights.
    by_another: these are losses of another training with as many steps, since the published weights learned all rows.
    """

    published_step: int
    published_loss: float
    best_step: int
    best_loss: float
    by_another: bool = False

    @property
    def rise(self) -> float:
        """How far the published loss is above the best one, as a share of the best; 0 if the last step was the best."""
        return self.published_loss / self.best_loss - 1

    @property
    def rose(self) -> bool:
        """Whether the held-out loss rose after its best step, by more than a page shows as 0 %."""
        return format_share(self.rise) != format_share(0)

    def describe(self) -> str:
        """Say which step was published, its loss, and how much the loss had risen since its best step."""
        step, loss = format_count(self.published_step), format_loss(self.published_loss)
        text = f"step {step}, the last one, was published, with held-out loss {loss}"
        if self.by_another:
            text = (
                f"all rows were learned, for {step} steps: a training that held some out had stopped there, with "
                f"held-out loss {loss}"
            )
        if self.published_step == self.best_step:
            return f"{text}, the lowest of {'that' if self.by_another else 'this'} training"
        best = f"{format_loss(self.best_loss)} at step {format_count(self.best_step)}"
        risen = f", so the loss rose by {format_share(self.rise)} after its best step" if self.rose else ""
        return f"{text}; the lowest was {best}{risen}"


def format_loss(value: float) -> str:
    """Write a loss with LOSS_DIGITS significant digits."""
    return format_significant(value, LOSS_DIGITS)


def curves_file(folder: Path) -> Path:
    """Return the file of curves with the held-out loss: the model's own, or those of the training that found the number
    of steps."""
    search = folder / "search.jsonl"
    return search if search.is_file() else folder / "metrics.jsonl"


def read_held_out(folder: Path) -> HeldOut:
    """Read the held-out losses of the last and the best step from a finished training's meta.json and curves.

    Raises ValueError if the folder holds no finished training, or if its log has no held-out loss for one of these
    steps.
    """
    meta, log = folder / "meta.json", curves_file(folder)
    if not meta.is_file() or not log.is_file():
        raise ValueError(
            f"{folder} holds no finished training (meta.json and metrics.jsonl); materialise {folder.name} first"
        )
    result = json.loads(meta.read_text())["result"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    by_another = log.name != "metrics.jsonl"
    last = result["num_steps"]
    best = min(losses, key=lambda step: losses[step], default=last) if by_another else result["best_step"]
    if missing := {last, best} - losses.keys():
        raise ValueError(f"{log} has no held-out loss for step {min(missing)}, which {meta.name} names; train it again")
    return HeldOut(last, losses[last], best, losses[best], by_another)
