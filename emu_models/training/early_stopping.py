"""When to stop tuning. The Emu paper stops "despite the loss still decreasing", at a count found by trial (sec. 3.4).

The rule here is ours: stop when the loss on held-out rows has not improved for `patience` validations, and go back to
the weights of the best one.
"""

from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """State that a checkpoint carries. patience 0 never stops."""

    patience: int
    best_loss: float = float("inf")
    best_step: int = -1
    num_worse: int = 0

    def observe(self, step: int, loss: float) -> bool:
        """Takes a validation loss; returns whether it is the best so far."""
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.num_worse = loss, step, 0
            return True
        self.num_worse += 1
        return False

    @property
    def should_stop(self) -> bool:
        return self.patience > 0 and self.num_worse >= self.patience
