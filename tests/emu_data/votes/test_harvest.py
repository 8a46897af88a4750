import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from emu_data.votes.harvest.groups import join_twins
from emu_data.votes.harvest.plan import QueuePlan, plan_queue
from emu_data.votes.harvest.probe import CHUNK, fit_probe
from emu_data.votes.harvest.queue import CONTROL_EVERY, Harvest, Ranking, Step
from emu_data.votes.harvest.stops import (
    certify,
    controls_needed,
    elusion,
    estimate,
    estimate_recall,
    misses_in_a_row,
    required_rank,
)

ORACLE = json.loads(Path(__file__).with_name("pyterrier_tar.json").read_text())
BATCH = 12


class Corpus:
    """Items in a few strata, some of them needles that lie off in one direction by `separation` deviations."""

    def __init__(self, num: int = 600, separation: float = 2.0, seed: int = 0, num_needles: int = 40):
        rng = np.random.default_rng(seed)
        self.keys = [f"picture-{i}" for i in range(num)]
        self.strata = rng.choice(["cats", "dogs", "trees"], size=num, p=[0.6, 0.3, 0.1]).tolist()
        self.is_needle = np.zeros(num, bool)
        self.is_needle[rng.choice(num, num_needles, replace=False)] = True
        self.embeddings = rng.normal(size=(num, 8)).astype(np.float32)
        self.embeddings[self.is_needle, 0] += separation

    def plan(self, seed: int = 0, num_control: int = 100, explore_share: float = 0.2) -> QueuePlan:
        return plan_queue(self.keys, self.strata, seed, num_control, explore_share)

    def vote(self, steps: list[Step]) -> dict[int, bool]:
        return {step.row: bool(self.is_needle[step.row]) for step in steps if step.is_shown}

    def run(self, plan: QueuePlan, num_views: int, growth: float = 1.5) -> tuple[Harvest, dict[int, bool]]:
        """Harvest until so many items are shown; the probe is taught again when the votes have grown."""
        harvest, labels, ranking, num_taught = Harvest(self.embeddings, plan), dict[int, bool](), None, 0
        while len(labels) < num_views and (steps := harvest.next_batch(BATCH, ranking)):
            labels |= self.vote(steps)
            if len(labels) >= growth * num_taught:
                ranking, num_taught = harvest.rank(labels), len(labels)
        return harvest, labels


def reached(harvest: Harvest) -> list[int]:
    return [step.row for step in harvest.steps if step.why != "control"]


# ---- the plan


@given(st.permutations(range(30)), st.integers(0, 2**64))
def test_a_plan_depends_on_the_set_of_keys_and_the_seed_alone(order: list[int], seed: int):
    keys, strata = [f"k{i}" for i in range(30)], [str(i % 4) for i in range(30)]
    plan = plan_queue(keys, strata, seed, 7, 0.1)
    other = plan_queue([keys[i] for i in order], [strata[i] for i in order], seed, 7, 0.1)
    assert [keys[row] for row in plan.control] == [keys[order[row]] for row in other.control]
    assert [keys[row] for row in plan.exploration] == [keys[order[row]] for row in other.exploration]


def test_the_control_sample_is_uniform_and_knows_nothing_of_strata_and_exploration():
    keys, strata = [f"k{i}" for i in range(40)], ["rare"] * 4 + ["common"] * 36
    num_drawn, places = np.zeros(40), []
    for seed in range(2000):
        plan = plan_queue(keys, strata, seed, 10, 0.1)
        assert len(set(plan.control)) == 10
        num_drawn[plan.control] += 1
        places += np.argsort(plan.exploration)[plan.control].tolist()
    # all 10 of 2000 draws are without replacement, which makes counts more even than the test expects
    assert stats.chisquare(num_drawn).pvalue > 0.001
    assert stats.chisquare(np.bincount(places, minlength=40)).pvalue > 0.001


@given(st.lists(st.sampled_from("aaaaabbc"), min_size=1, max_size=80), st.integers(0, 5))
def test_each_beginning_of_the_exploration_holds_each_stratum_in_proportion(strata: list[str], seed: int):
    plan = plan_queue([str(i) for i in range(len(strata))], strata, seed, 0, 0.1)
    assert sorted(plan.exploration) == list(range(len(strata)))
    sizes, seen = Counter(strata), Counter[str]()
    for num, row in enumerate(plan.exploration, 1):
        seen[strata[row]] += 1
        assert all(abs(seen[name] - num * size / len(strata)) <= 1.5 for name, size in sizes.items())


def test_what_is_no_plan_is_refused():
    for keys, num_control, share in ((["a", "a"], 0, 0.1), (["a", "b"], 3, 0.1), (["a", "b"], 1, 1.1)):
        with pytest.raises(ValueError):
            plan_queue(keys, ["s"] * 2, 0, num_control, share)
    with pytest.raises(ValueError, match="embeddings"):
        Harvest(np.zeros((3, 2), np.float32), plan_queue(["a"], ["s"], 0, 0, 0.1))


# ---- the queue


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_item_is_shown_once_and_reached_once(data: st.DataObject):
    num = data.draw(st.integers(1, 60))
    num_control, share = data.draw(st.integers(0, num)), data.draw(st.floats(0, 1))
    keys, strata = [str(i) for i in range(num)], [str(i % 3) for i in range(num)]
    plan = plan_queue(keys, strata, data.draw(st.integers(0, 9)), num_control, share)
    harvest = Harvest(np.zeros((num, 1), np.float32), plan)
    probe: Any = None
    while True:
        order = np.array(data.draw(st.permutations(range(num))))
        ranking = data.draw(st.sampled_from([None, Ranking(probe, np.zeros(num, np.float32), order)]))
        size = data.draw(st.integers(1, 15))
        steps = harvest.next_batch(size, ranking)
        shown = [step for step in steps if step.is_shown]
        assert len(shown) == size or not harvest.next_batch(1, ranking)
        if not shown:
            break
    assert sorted(step.row for step in harvest.steps if step.is_shown) == list(range(num))
    assert sorted(reached(harvest)) == list(range(num))


def test_control_items_come_between_the_others_until_they_are_used_up():
    corpus = Corpus()
    harvest, _ = corpus.run(corpus.plan(num_control=50), 300)
    shown = [step for step in harvest.steps if step.is_shown]
    places = [i for i, step in enumerate(shown) if step.why == "control"]
    assert all(place % CONTROL_EVERY == CONTROL_EVERY - 1 for place in places)
    last = shown[: places[-1] + 1]
    assert len(places) == len(last) // CONTROL_EVERY
    control = set(harvest.plan.control.tolist())
    assert control <= {step.row for step in last}


def test_votes_on_control_items_do_not_teach():
    corpus = Corpus()
    harvest, labels = corpus.run(corpus.plan(), 300)
    ranking = harvest.rank(labels)
    control = set(harvest.plan.control.tolist())
    lies = {row: kept != (row in control) for row, kept in labels.items()}
    other, none = harvest.rank(lies), harvest.rank({row: kept for row, kept in labels.items() if row in control})
    assert ranking and other and np.array_equal(ranking.scores, other.scores)
    assert none is None
    assert any(corpus.is_needle[row] for row in control & labels.keys())  # or the test would show nothing


@pytest.mark.parametrize("seed", range(5))
def test_an_item_in_the_control_sample_is_reached_as_if_it_were_not(seed: int):
    """What the certificate rests on: until one of the two is reached, exchanging an item of the control
    sample with another one changes nothing in the order in which items are reached.
    """
    corpus = Corpus(seed=seed)
    plan = corpus.plan(seed)
    rng = np.random.default_rng(seed)
    inside = int(rng.choice(plan.control))
    outside = int(rng.choice(np.setdiff1d(np.arange(len(corpus.keys)), plan.control)))
    swapped = replace(plan, control=np.where(plan.control == inside, outside, plan.control))
    orders = [reached(corpus.run(one, len(corpus.keys))[0]) for one in (plan, swapped)]
    until = min(order.index(row) for order in orders for row in (inside, outside))
    assert until > 0 and orders[0][: until + 1] == orders[1][: until + 1]


def test_the_same_votes_give_the_same_order_and_a_harvest_continues_from_its_steps():
    corpus = Corpus()
    plan = corpus.plan()
    harvest, labels = corpus.run(plan, 200)
    again, _ = corpus.run(plan, 200)
    assert harvest.steps == again.steps
    resumed = Harvest(corpus.embeddings, plan, harvest.steps)
    rankings = harvest.rank(labels), resumed.rank(dict(reversed(labels.items())))
    assert rankings[0] and rankings[1] and np.array_equal(rankings[0].order, rankings[1].order)
    assert harvest.next_batch(100, rankings[0]) == resumed.next_batch(100, rankings[1])


def test_without_a_probe_the_order_is_the_explorations():
    corpus = Corpus()
    harvest = Harvest(corpus.embeddings, corpus.plan(num_control=0))
    steps = harvest.next_batch(50)
    assert [step.row for step in steps] == harvest.plan.exploration[:50].tolist()
    assert {step.why for step in steps} == {"start"}
    assert harvest.rank({step.row: False for step in steps}) is None


def test_every_stratum_keeps_its_share_of_exploration_whatever_the_probe_likes():
    corpus = Corpus(num=2000)
    likes = np.array([name == "cats" for name in corpus.strata])
    corpus.embeddings[likes, 1] += 20  # the probe sees cats
    plan = corpus.plan(num_control=0, explore_share=0.2)
    harvest = Harvest(corpus.embeddings, plan)
    ranking = harvest.rank({step.row: bool(likes[step.row]) for step in harvest.next_batch(100)})
    steps = harvest.next_batch(700, ranking)
    explored = [step for step in steps if step.why == "explore"]
    for num in range(len(steps)):
        assert abs(sum(step.why == "explore" for step in steps[:num]) - 0.2 * num) <= 1
    assert all(likes[step.row] for step in steps if step.why == "best")
    for name, size in Counter(corpus.strata).items():
        share = size / 2000
        if name != "cats":  # of which the probe has taken those that exploration would have come to
            assert sum(corpus.strata[step.row] == name for step in explored) >= 0.2 * 700 * share - 1


def test_votes_from_elsewhere_are_not_asked_for_again():
    corpus = Corpus()
    harvest = Harvest(corpus.embeddings, corpus.plan(num_control=20))
    control = int(harvest.plan.control[0])
    steps = harvest.give([3, 5, 3, control])
    assert steps == [Step(3, "given", False), Step(5, "given", False), Step(control, "given", False)]
    assert harvest.rank({3: True, 5: False}) and harvest.rank({3: True, control: False}) is None
    rest = [step.row for step in harvest.next_batch(600) if step.is_shown]
    assert len(rest) == 597 and not {3, 5, control} & set(rest)


def test_needles_come_first():
    corpus = Corpus(num=2000, separation=4, num_needles=60)
    _, labels = corpus.run(corpus.plan(num_control=0, explore_share=0.1), 300)
    assert sum(labels.values()) >= 48  # 9 in random order


class Rows:
    """Embeddings that count what is read of them."""

    def __init__(self, embeddings: np.ndarray):
        self.embeddings, self.num_read, self.largest = embeddings, 0, 0

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: Any) -> np.ndarray:
        found = self.embeddings[rows]
        self.num_read, self.largest = self.num_read + len(found), max(self.largest, len(found))
        return found


def test_the_work_for_a_batch_of_200_000_items_is_bounded():
    """Embeddings are read once for each ranking, in chunks, and never for a batch, whose work is that of its items."""
    num, num_reached = 200_000, 40_000
    rows = Rows(np.random.default_rng(0).normal(size=(num, 2)).astype(np.float32))
    plan = plan_queue([str(i) for i in range(num)], [str(i % 50) for i in range(num)], 0, 2000, 0.15)
    harvest = Harvest(rows, plan)  # type: ignore
    labels = {step.row: step.row % 30 == 0 for step in harvest.next_batch(num_reached)}
    ranking = harvest.rank(dict(list(labels.items())[:1000]))
    assert rows.num_read <= num + 1000 and rows.largest <= CHUNK

    num_lines = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal num_lines
        num_lines += event == "line"
        return trace

    before = rows.num_read
    for _ in range(2):  # the first takes a new ranking, whose reached items it skips at once
        num_lines = 0
        sys.settrace(trace)
        steps = harvest.next_batch(24, ranking)
        sys.settrace(None)
        assert len(steps) >= 24 and num_lines < 24 * 60
    assert rows.num_read == before


# ---- the probe


def test_scores_are_those_of_the_whole_in_chunks_and_from_a_memory_map(tmp_path: Path):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(CHUNK + 7, 5)).astype(np.float32)
    np.save(tmp_path / "embeddings.npy", embeddings)
    on_disk = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    labels = {row: bool(embeddings[row, 0] > 1) for row in range(200)}
    probe, other = fit_probe(embeddings, labels), fit_probe(on_disk, labels)
    assert np.array_equal(probe.weights, other.weights)
    np.testing.assert_allclose(probe.scores(on_disk), embeddings @ probe.weights + probe.bias, rtol=1e-5, atol=1e-5)
    assert stats.spearmanr(probe.scores(embeddings), embeddings[:, 0]).statistic > 0.9  # pyrefly: ignore
    with pytest.raises(ValueError, match="both kinds"):
        fit_probe(embeddings, dict.fromkeys(range(5), True))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_probe_ranks_the_same_whatever_the_length_and_the_centre_of_the_embeddings(scale: float):
    corpus = Corpus()
    labels = {row: bool(corpus.is_needle[row]) for row in range(300)}
    scores = fit_probe(corpus.embeddings, labels).scores(corpus.embeddings)
    moved = (scale * (corpus.embeddings + 3)).astype(np.float32)
    assert stats.spearmanr(scores, fit_probe(moved, labels).scores(moved)).statistic > 0.999  # pyrefly: ignore


# ---- stopping


@pytest.mark.parametrize("row", ORACLE["required_ranks"], ids=lambda row: f"{row['recall']}-{row['confidence']}")
def test_the_ranks_are_those_of_pyterrier_tar(row: dict[str, Any]):
    for num, rank in enumerate(row["ranks"]):
        assert required_rank(num, row["recall"], row["confidence"]) == (rank if rank <= num else None)
    possible = [num for num, rank in enumerate(row["ranks"]) if rank <= num]
    assert controls_needed(row["recall"], row["confidence"]) == possible[0]


@pytest.mark.parametrize("number", range(len(ORACLE["reviews"])))
def test_the_stops_are_those_of_pyterrier_tar(number: int):
    review = ORACLE["reviews"][number]
    kept = [label == "1" for label in review["labels"]]
    num = len(kept)
    plan = QueuePlan(np.array(review["control"]), np.arange(num), 0.0)
    steps, labels = [Step(row, "best", True) for row in range(num)], dict(enumerate(kept))

    def first(may_stop: list[bool]) -> int | None:
        return may_stop.index(True) + 1 if any(may_stop) else None

    certified = [certify(plan, steps[: i + 1], labels, review["recall"]).may_stop for i in range(num)]
    assert first(certified) == review["qbcb_stop"]
    missed = [misses_in_a_row(steps[: i + 1], labels, review["misses"]).may_stop for i in range(num)]
    assert first(missed) == review["misses_stop"]
    found = estimate_recall(np.array(review["probabilities"]), np.arange(num) < review["num_seen"])
    assert found == pytest.approx((review["quant_recall"], review["quant_deviation"]))


def test_the_published_numbers():
    assert controls_needed(0.9, 0.95) == 29 and required_rank(28, 0.9, 0.95) is None
    assert [required_rank(num, 0.9, 0.95) for num in (29, 60, 150)] == [29, 59, 142]


@settings(deadline=None, max_examples=15)
@given(st.floats(0.5, 0.99), st.floats(0.5, 0.99))
def test_more_control_keepers_never_lower_the_guarantee(recall: float, confidence: float):
    first = controls_needed(recall, confidence)
    ranks = [required_rank(num, recall, confidence) for num in range(first + 80)]
    assert ranks[:first] == [None] * first
    for num, (rank, more) in enumerate(zip(ranks[first:], ranks[first + 1 :], strict=False), first):
        # One more keeper needs at most one more to be reached, so reaching it keeps a certificate.
        assert rank is not None and more is not None and rank <= more <= rank + 1
        # A recall below the target is certified in 1 - confidence of the draws at the most, with replacement …
        assert stats.binom.sf(rank - 1, num, recall) <= 1 - confidence + 1e-9
        for num_all in (num, num + 1, 2 * num, 50 * num):  # … and without, as the sample is drawn
            too_few = int(np.ceil(recall * num_all - 1e-9)) - 1
            assert stats.hypergeom.sf(rank - 1, num_all, num, too_few) <= 1 - confidence + 1e-9


def test_certificates_hold_in_harvests_with_other_control_samples():
    """The whole harvest for each draw, since what trains the probe depends on the draw. The confidence is low, so that
    a wrong rule would show in few draws: one that counts control items as reached when they are shown holds in few.
    """
    corpus, num_draws, held = Corpus(num=300, separation=1.5, num_needles=40), 150, list[bool]()
    for seed in range(num_draws):
        plan = corpus.plan(seed, num_control=100)
        harvest, labels, ranking, num_taught = Harvest(corpus.embeddings, plan), dict[int, bool](), None, 0
        while True:
            labels |= corpus.vote(harvest.next_batch(3, ranking))
            if certify(plan, harvest.steps, labels, 0.7, 0.8).may_stop:
                break
            if len(labels) >= 2 * num_taught:
                ranking, num_taught = harvest.rank(labels), len(labels)
        held.append(corpus.is_needle[reached(harvest)].sum() >= 0.7 * 40)
    assert stats.binomtest(sum(held), num_draws, 0.8, alternative="less").pvalue > 0.001
    assert not all(held)


def test_a_certificate_says_what_it_waits_for():
    plan = QueuePlan(np.arange(100), np.arange(1000), 0.1)
    labels = {row: row < 40 for row in range(100)}
    steps = [Step(row, "best", True) for row in (500, *range(40))]

    def said(*arguments: Any) -> str:
        return certify(plan, *arguments).sentence

    assert said([], {0: True}) == "No certificate yet: 99 of the 100 control pictures have no vote."
    few = certify(plan, steps, {row: row < 20 for row in range(100)})
    assert (few.may_stop, few.num_needed, few.num_had) == (False, 29, 20)
    assert (
        "hold 20 keepers, and 90 % of all keepers with 95 % confidence need 29, in a sample of about 150"
        in few.sentence
    )
    none = certify(plan, steps, dict.fromkeys(range(100), False))
    assert none.num_had == 0 and not none.may_stop
    waiting = certify(plan, steps[:30], labels)
    assert (waiting.may_stop, waiting.num_needed, waiting.num_had) == (False, 40, 29)
    assert "of the 40 keepers in the control sample 40 must be reached, 29 are" in waiting.sentence
    assert "votes are missing on 1 of the pictures handed out" in said(steps, labels)
    done = certify(plan, steps, labels | {500: False})
    assert done.may_stop and (done.kind, done.recall, done.confidence) == ("certificate", 0.9, 0.95)
    assert done.sentence.startswith("Certified with 95 % confidence: at least 90 % of all keepers were found")
    shown = [Step(row, "control", True) for row in range(100)]
    assert certify(plan, shown, labels).num_had == 0  # shown is not reached
    with pytest.raises(ValueError):
        certify(plan, steps, labels, recall=1.0)


def test_an_estimate_is_near_the_truth_and_needs_control_keepers():
    corpus = Corpus(num=4000, num_needles=200)
    harvest, labels = corpus.run(corpus.plan(num_control=1000), 2500)
    ranking = harvest.rank(labels)
    assert ranking
    stop = estimate(harvest.plan, harvest.steps, labels, ranking)
    truth = 100 * corpus.is_needle[reached(harvest)].sum() / 200
    assert stop.kind == "estimator" and stop.estimated and abs(stop.estimated.estimate - truth) < 8
    low = stop.estimated.low / 100
    for recall, may_stop in ((low - 0.01, True), (low + 0.01, False)):
        assert estimate(harvest.plan, harvest.steps, labels, ranking, recall).may_stop is may_stop
    none = estimate(harvest.plan, harvest.steps, {0: True}, ranking)
    assert not none.may_stop and none.estimated is None


def test_elusion_is_bounded_by_three_over_n():
    assert elusion(300, 0).high == pytest.approx(100 * (1 - 0.05 ** (1 / 300)))
    assert elusion(300, 0).high < 1.0 and elusion(300, 3).estimate == 1.0
    assert elusion(300, 3).high == pytest.approx(100 * stats.beta.ppf(0.95, 4, 297))
    assert elusion(0, 0).high == 100


# ---- near-twins


def test_near_twins_are_one_item():
    embeddings = np.array([[2, 0], [0, 3], [1, 0], [0, 0.5], [1, 1]], np.float32)
    items = join_twins(["a", "b", "c", "d", "e"], {"a": "c", "c": "c", "b": "b", "d": "b"}, embeddings)
    assert items.keys == ["c", "b", "e"]
    assert [rows.tolist() for rows in items.members] == [[0, 2], [1, 3], [4]]
    np.testing.assert_allclose(items.embeddings, [[1, 0], [0, 1], [0.5**0.5, 0.5**0.5]], rtol=1e-6)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_every_picture_is_in_one_item(clusters: list[int]):
    keys = [f"k{i}" for i in range(len(clusters))]
    items = join_twins(keys, dict(zip(keys, map(str, clusters), strict=True)), np.eye(len(keys), 3, dtype=np.float32))
    assert sorted(np.concatenate(items.members).tolist()) == list(range(len(keys)))
    for key, rows in zip(items.keys, items.members, strict=True):
        assert {str(clusters[row]) for row in rows} == {key}
    assert len(items.embeddings) == len(set(clusters))
