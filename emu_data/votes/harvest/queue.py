"""Which items of a queue are shown next.

The harvest *reaches* items: those with the probe's highest scores and, for a declared share, the next ones in the
plan's order of exploration; as long as there is no probe, only the latter. Besides, the control sample is *shown*, as
one item in CONTROL_EVERY until it is used up.

The harvest does not know which items are control items. It reaches them like any other item, and an item that was
shown as a control item is not shown again when it is reached. So whether an item is in the control sample cannot
influence when it is reached. It influences only what is reached afterwards, since control items do not train the probe.
This is what the certificate needs: each keeper that the harvest reaches is in the control sample with the same
probability as the keepers that it has not reached yet, however the harvest came to choose it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from emu_data.votes.harvest.plan import QueuePlan
from emu_data.votes.harvest.probe import Probe, fit_probe

CONTROL_EVERY = 2  # one shown item in so many is a control item, until the sample is used up; chosen here

Why = Literal["start", "explore", "best", "control", "given"]


class Step(NamedTuple):
    """One item that the harvest reached or showed.

    Args:
        row: of the item.
        why: an item is reached as "start" (in the order of exploration, before there is a probe), "explore" (the same,
            beside a probe), "best" (by the probe) or "given" (people voted on it elsewhere). "control" shows a control
            item without reaching it.
        is_shown: whether it is to be shown now; False for an item that was shown as a control item, or was given.
    """

    row: int
    why: Why
    is_shown: bool


@dataclass(frozen=True, eq=False)
class Ranking:
    """All items by a probe. order: int64 (N,), rows, best first. scores: float32 (N,), by row."""

    probe: Probe
    scores: np.ndarray
    order: np.ndarray


class Harvest:
    """A queue of N items and what was done with it so far.

    Args:
        embeddings: (N, D), in the order of the plan's keys; an array or a memory map.
        plan: of the queue.
        steps: what an earlier object's `next_batch` and `give` returned, in order. Nothing else has to be stored.

    `rank` only reads, and may run in another thread; the other methods belong to one thread at a time.
    """

    def __init__(self, embeddings: np.ndarray, plan: QueuePlan, steps: Iterable[Step] = ()):
        if len(embeddings) != plan.num_items:
            raise ValueError(f"{len(embeddings)} embeddings for a plan of {plan.num_items} items")
        self.plan = plan
        self.steps: list[Step] = []
        self._embeddings = embeddings
        self._is_control = np.zeros(plan.num_items, bool)
        self._is_control[plan.control] = True
        self._is_reached = np.zeros(plan.num_items, bool)
        self._is_done = np.zeros(plan.num_items, bool)  # shown, or given
        self._num_shown = self._num_with_probe = 0
        self._exploration, self._control = _Walk(plan.exploration), _Walk(plan.control)
        self._ranking: Ranking | None = None
        self._best = _Walk(np.empty(0, np.int64))
        for step in steps:
            self._take(step)

    def rank(self, labels: Mapping[int, bool]) -> Ranking | None:
        """Train a probe and rank all items with it. None if the labels that may train it are all the same.

        labels: row -> whether people keep the item. Only reached items outside the control sample train the probe.
        """
        training = {row: kept for row, kept in labels.items() if self._is_reached[row] and not self._is_control[row]}
        if len(set(training.values())) < 2:
            return None
        probe = fit_probe(self._embeddings, training)
        scores = probe.scores(self._embeddings)
        # items with equal scores in the order of exploration
        order = self.plan.exploration[np.argsort(-scores[self.plan.exploration], kind="stable")]
        return Ranking(probe, scores, order)

    def next_batch(self, num: int, ranking: Ranking | None = None) -> list[Step]:
        """Return the next steps, of which `num` are to be shown, or fewer at the end of the queue.

        They depend only on the steps so far and the arguments. ranking: the newest one of `rank`; None if there is
        none yet.
        """
        first = len(self.steps)
        if ranking is not self._ranking:
            self._ranking = ranking
            self._best = _Walk(ranking.order[~self._is_reached[ranking.order]] if ranking else np.empty(0, np.int64))
        last = self._num_shown + num
        while self._num_shown < last and (step := self._next()):
            self._take(step)
        return self.steps[first:]

    def give(self, rows: Iterable[int]) -> list[Step]:
        """Return the steps that reach items on which people voted elsewhere, and which need not be shown."""
        first = len(self.steps)
        for row in rows:
            if not self._is_reached[row]:
                self._take(Step(row, "given", False))
        return self.steps[first:]

    def _next(self) -> Step | None:
        """Return the next step; None at the end of the queue."""
        control = self._control.peek(self._is_done)
        if control is not None and self._num_shown % CONTROL_EVERY == CONTROL_EVERY - 1:
            return Step(control, "control", True)
        row, why = self._exploration.peek(self._is_reached), "start"
        if self._ranking is not None and row is not None:
            share, num = self.plan.explore_share, self._num_with_probe
            why = "explore" if int((num + 1) * share) > int(num * share) else "best"
            row = row if why == "explore" else self._best.peek(self._is_reached)
        return None if row is None else Step(row, why, not self._is_done[row])

    def _take(self, step: Step) -> None:
        self.steps.append(step)
        self._is_done[step.row] = True
        self._num_shown += step.is_shown
        if step.why != "control":
            self._is_reached[step.row] = True
            self._num_with_probe += step.why in ("explore", "best")


class _Walk:
    """Goes once along some rows and skips those that are done."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows
        self.at = 0

    def peek(self, is_done: np.ndarray) -> int | None:
        """Return the first row that is not done (bool, N); None at the end. What was done once must stay done."""
        while self.at < len(self.rows) and is_done[self.rows[self.at]]:
            self.at += 1
        return int(self.rows[self.at]) if self.at < len(self.rows) else None
