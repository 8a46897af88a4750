"""When to stop tuning. The Emu paper stops "despite the loss still decreasing", at a count found by trial (sec. 3.4).

The rule here is ours: stop once the loss on held-out rows lies `max_rise` above its best, and keep the weights of that
moment. Not those of the best moment: a few dozen pictures are to be taken on, and the held-out loss of so few turns
after some steps, long before the look of the set has been learned (docs/log.md, 2026-11-24). The paper's own count,
15 K x 64 over 2 000 pictures, is 480 passes, far beyond such a minimum as well.
"""

from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """State that a checkpoint carries. max_rise: share of the best loss, for example 0.5; 0 never stops."""

    max_rise: float
    best_loss: float = float("inf")
    best_step: int = -1
    last_loss: float = float("nan")

    def observe(self, step: int, loss: float) -> None:
        """Takes a validation loss."""
        self.last_loss = loss
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, step

    @property
    def should_stop(self) -> bool:
        return self.max_rise > 0 and self.last_loss > self.best_loss * (1 + self.max_rise)
