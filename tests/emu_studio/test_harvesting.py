"""The queue learns from the votes while people vote, goes on after a restart, and its certificate can be checked."""

import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from emu_studio.ballots import Ballot
from emu_studio.clerk import Clerk
from emu_studio.database import open_database
from emu_studio.harvesting import write_embeddings
from emu_studio.items import NewItem, Shown
from emu_studio.people import invite
from emu_studio.plan import Stop, default_plan
from emu_studio.queue import Queue
from emu_studio.rounds import find_round, open_round

NUM, NEEDLES = 1500, 60


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of which one direction tells the needles, and which are needles."""
    rng = np.random.default_rng(seed)
    is_needle = np.zeros(NUM, bool)
    is_needle[rng.choice(NUM, NEEDLES, replace=False)] = True
    embeddings = rng.normal(size=(NUM, 16)).astype(np.float32)
    embeddings[:, 0] += 3.0 * is_needle
    return embeddings, is_needle


def items_of(num: int, folder: Path) -> list[NewItem]:
    pictures = [Shown(folder / f"{n}", f"{n:05d}", f"{n:064d}") for n in range(num)]
    return [NewItem(one.key, one.digest, (one,), stratum=f"{n % 3}") for n, one in enumerate(pictures)]


@pytest.mark.parametrize(("has_embeddings", "kind"), [(True, "certificate"), (True, "estimate"), (False, "estimate")])
def test_needles_come_early_where_there_are_embeddings(
    tmp_path: Path, url: str | None, has_embeddings: bool, kind: Literal["certificate", "estimate"]
) -> None:
    embeddings, is_needle = world()
    database = open_database(url or tmp_path / "studio.db")
    stop = Stop(kind=kind, recall=0.5, confidence=0.9)
    plan = default_plan("generalist", num_control=300, stop=stop, explore_share=0.1)
    open_round(database, plan, items_of(NUM, tmp_path))
    if has_embeddings:
        write_embeddings(tmp_path / "generalist.npy", embeddings)
    anna, _ = invite(database, "Anna", "generalist")
    round_ = find_round(database, "generalist")
    queue = Queue(database, round_, embeddings=tmp_path)
    seen: list[int] = []
    stopped_at = None
    while len(seen) < 900:
        if len(seen) == 240:  # the studio is restarted
            queue = Queue(database, round_, embeddings=tmp_path)
        turns = queue.take(anna, 24)
        ballots = [
            Ballot(
                ballot=f"ballot-{turn.place}", item=turn.item_id, decision="keep" if is_needle[turn.place] else "drop"
            )
            for turn in turns
        ]
        Clerk(database, queue).cast(anna, ballots)
        seen += [turn.place for turn in turns]
        wait_for_the_probe(queue)
        assert queue.harvester is not None
        said = queue.harvester.stop()
        assert said is not None
        if said.may_stop and stopped_at is None:
            stopped_at = len(seen)
            assert is_needle[seen].sum() / NEEDLES >= 0.5  # not promised each time, but with this seed
    assert len(set(seen)) == len(seen)
    found = is_needle[seen].sum() / NEEDLES
    in_random_order = len(seen) / NUM
    assert found > 0.95 if has_embeddings else abs(found - in_random_order) < 0.2
    assert queue.is_control.sum() == 300 and queue.is_control[seen].all() == (len(seen) == 300)
    # without embeddings there is no probe whose scores could be read
    assert (stopped_at is not None) == has_embeddings


def wait_for_the_probe(queue: Queue) -> None:
    assert queue.harvester is not None
    deadline = time.monotonic() + 60
    while queue.harvester._is_learning and time.monotonic() < deadline:
        time.sleep(0.005)
