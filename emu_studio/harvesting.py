"""The queue of a round in which pictures are chosen: what is handed out next, learned from the votes while people vote.

What the harvest decides (emu_data.votes.harvest) is in the database step by step, so that a restarted studio goes on
where it stopped and everybody can check a certificate. The probe is fitted in a thread of its own: nobody waits for it.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from sqlalchemy import insert, select

from emu_data.files import atomic_file
from emu_data.votes.harvest.plan import plan_queue
from emu_data.votes.harvest.queue import Harvest, Ranking, Step
from emu_data.votes.harvest.stops import Stop, certify, estimate, misses_in_a_row
from emu_studio.database import Database, HarvestStep
from emu_studio.rounds import OpenRound

LEARN_AFTER = 20  # new labels until the probe is fitted again; chosen here
LEARN_SHARE = 0.05  # or this share of the labels, if it is more: late labels change little; chosen here


class Harvester:
    """The harvest of one round. embeddings: (N, D) in the order of the items' places; D = 0 where there are none, and
    then all follows the order of exploration.
    """

    def __init__(
        self,
        database: Database,
        round_: OpenRound,
        keys: list[str],
        strata: list[str],
        embeddings: np.ndarray,
        labels: Callable[[], Mapping[int, bool]],
    ) -> None:
        self._database, self._round, self._labels = database, round_, labels
        plan = round_.plan
        self.plan = plan_queue(keys, strata, plan.seed, plan.num_control, plan.explore_share)
        with database.read() as session:
            where = select(HarvestStep).where(HarvestStep.round_id == round_.id).order_by(HarvestStep.number)
            steps = [Step(row.place, row.why, row.is_shown) for row in session.scalars(where)]  # pyrefly: ignore
        self._harvest = Harvest(embeddings, self.plan, steps)
        self._can_learn = embeddings.shape[1] > 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="probe")
        self._lock, self._is_learning = threading.Lock(), False
        self._num_learned = 0
        self.ranking: Ranking | None = None

    @property
    def shown(self) -> list[int]:
        """The places that were handed out so far, in that order."""
        return [step.row for step in self._harvest.steps if step.is_shown]

    def extend(self, num: int) -> list[int]:
        """Return `num` places more, fewer at the end, after they are on disk. One thread at a time."""
        first = len(self._harvest.steps)
        steps = self._harvest.next_batch(num, self.ranking)
        rows = [
            {"round_id": self._round.id, "number": first + n, "place": s.row, "why": s.why, "is_shown": s.is_shown}
            for n, s in enumerate(steps)
        ]
        if rows:
            with self._database.write() as session:
                session.execute(insert(HarvestStep), rows)
        return [step.row for step in steps if step.is_shown]

    def learn(self, num_labels: int) -> None:
        """Have the probe fitted again in the background, if enough was decided since. num_labels: of all items that
        somebody decided on; called at every vote, which must not wait for all the others to be looked through."""
        with self._lock:
            is_due = num_labels - self._num_learned >= max(LEARN_AFTER, LEARN_SHARE * self._num_learned)
            if not self._can_learn or self._is_learning or not is_due:
                return
            self._is_learning, self._num_learned = True, num_labels
        self._pool.submit(self._rank)

    def stop(self) -> Stop | None:
        """Return what the plan's stopping rule says now; None for a rule that needs no harvest."""
        rule, labels = self._round.plan.stop, self._labels()
        if rule.kind == "certificate":
            return certify(self.plan, self._harvest.steps, labels, rule.recall, rule.confidence)
        if rule.kind == "estimate":
            return estimate(self.plan, self._harvest.steps, labels, self.ranking, rule.recall)
        return misses_in_a_row(self._harvest.steps, labels, rule.misses) if rule.kind == "misses" else None

    def describe(self) -> str:
        """Return how pictures were chosen for being shown so far, for the lead."""
        why = Counter(step.why for step in self._harvest.steps if step.is_shown)
        if not self._can_learn:
            return f"{why.total()} shown, spread over the concepts; there are no embeddings for a probe to learn from"
        told = f"{why.total()} shown: {why['best']} by the probe, {why['explore'] + why['start']} to explore"
        return f"{told}, {why['control']} of the control sample of {len(self.plan.control)}"

    def close(self) -> None:
        """Stop learning."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _rank(self) -> None:
        try:
            self.ranking = self._harvest.rank(self._labels())
        finally:
            with self._lock:
                self._is_learning = False


def write_embeddings(file: Path, embeddings: np.ndarray) -> None:
    """Keep the embeddings of a round's items, float32 (N, D), in the order of the items."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial, open(partial, "wb") as stream:
        np.save(stream, np.ascontiguousarray(embeddings, np.float32), allow_pickle=False)


def read_embeddings(file: Path | None, num_items: int) -> np.ndarray:
    """Return the embeddings of a round as a memory map; (N, 0) where there are none. Raises ValueError if they are of
    another number of items."""
    if file is None or not file.is_file():
        return np.empty((num_items, 0), np.float32)
    found = np.load(file, mmap_mode="r", allow_pickle=False)
    if len(found) != num_items:
        raise ValueError(f"{file} holds {len(found)} embeddings, and the round has {num_items} items")
    return found
