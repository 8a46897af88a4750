"""The held-out loss of a finished training: each number with the step that it is of, read from one place.

The weights that are published are those of the last step, also where an earlier one had a lower loss on held-out rows
(emu_models/training/early_stopping.py says why). So there are two steps, and whoever names a loss has to name its own.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from emu_data.formatting import format_count, format_share, format_significant

LOSS_DIGITS = 3  # significant ones of a loss; chosen here


@dataclass(frozen=True)
class HeldOut:
    """Loss on held-out rows of the published weights, which are those of the last step, and of the best step."""

    published_step: int
    published_loss: float
    best_step: int
    best_loss: float

    @property
    def rise(self) -> float:
        """Share of the best loss by which the published one lies above it; 0 where the last step was the best."""
        return self.published_loss / self.best_loss - 1

    @property
    def rose(self) -> bool:
        return self.published_step != self.best_step

    def describe(self) -> str:
        """Which step was published, its loss, and whether and by how much the loss had risen by then."""
        step, loss = format_count(self.published_step), format_loss(self.published_loss)
        told = f"published is step {step}, the last, with held-out loss {loss}"
        if not self.rose:
            return f"{told}, the lowest of this training"
        best = f"{format_loss(self.best_loss)} at step {format_count(self.best_step)}"
        return f"{told}; the lowest was {best}, so it rose by {format_share(self.rise)} after its best step"


def format_loss(value: float) -> str:
    return format_significant(value, LOSS_DIGITS)


def read_held_out(folder: Path) -> HeldOut:
    """What the log of a finished training (meta.json, metrics.jsonl) has of its last and of its best step.

    ValueError: the folder holds no finished training, or its log has no held-out loss of one of these steps.
    """
    meta, log = folder / "meta.json", folder / "metrics.jsonl"
    if not meta.is_file() or not log.is_file():
        raise ValueError(f"{folder} holds no finished training (meta.json and metrics.jsonl); materialise its asset")
    result = json.loads(meta.read_text())["result"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    last, best = result["num_steps"], result["best_step"]
    if missing := {last, best} - losses.keys():
        raise ValueError(f"{log} has no held-out loss of step {min(missing)}, which {meta.name} names; train it again")
    return HeldOut(last, losses[last], best, losses[best])
