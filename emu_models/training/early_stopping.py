"""When to stop tuning. The Emu paper stops "despite the loss still decreasing", at a count found by trial (sec. 3.4).

The rule is chosen here: stop once the loss on held-out rows is `max_rise` above its best, and keep the weights of that
step. They are not those of the best step, since tuning should take on the look of a few dozen pictures, and with so few
the held-out loss rises after some steps, long before their look has been learned (docs/log.md, 2026-11-24). The paper's
own count, 15 K x 64 over 2 000 pictures, is 480 passes, far beyond such a minimum too.
"""

from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """The rule's memory, which is part of a saved state. max_rise: share of the best loss, for example 0.5; 0 never
    stops."""

    max_rise: float
    best_loss: float = float("inf")
    best_step: int = -1
    last_loss: float = float("nan")

    def observe(self, step: int, loss: float) -> None:
        """Note a validation loss."""
        self.last_loss = loss
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, step

    @property
    def should_stop(self) -> bool:
        """Whether the last held-out loss is more than `max_rise` above the best one."""
        return self.max_rise > 0 and self.last_loss > self.best_loss * (1 + self.max_rise)
