"""When to stop. Each rule says how much its answer is worth:

- A *heuristic* promises nothing: the last so many pictures held no keeper.
- An *estimator* is right if its model is right: the probe's scores, read as probabilities, summed over the reached and
  over all items (QuantCI of Yang, Lewis and Frieder, DocEng 2021, arXiv 2106.09871).
- A *certificate* holds however good or bad the probe is, with a stated confidence over the draw of the control sample:
  QBCB (quantile binomial confidence bound) of Lewis, Yang and Frieder, CIKM 2021, arXiv 2108.12746.

A keeper is an item that people keep, as their votes are now. Whether they are right is another question.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts are loaded when they are first used

from emu_data.formatting import format_count, format_share
from emu_data.votes.harvest.plan import QueuePlan
from emu_data.votes.harvest.queue import Ranking, Step
from emu_data.votes.intervals import Interval, exact_rate

RECALL, CONFIDENCE = 0.90, 0.95  # defaults; chosen here
NUM_DEVIATIONS = 2.0  # standard deviations by which an estimate must exceed the target, as QuantCI was published


@dataclass(frozen=True)
class Stop:
    """What one rule says now.

    Args:
        kind: how much the answer is worth, see this module's docstring.
        may_stop: whether enough was seen, by this rule.
        sentence: the answer with its reason, for people.
        recall: 0..1, the target: the share of all keepers to be found. None for a heuristic.
        confidence: 0..1, of a certificate.
        num_needed, num_had: how many keepers of the control sample must be reached and were. If the sample holds too
            few keepers for any certificate, how many it must hold and holds. For a heuristic, misses in a row.
        estimated: of an estimator, the recall in per cent.
    """

    kind: Literal["heuristic", "estimator", "certificate"]
    may_stop: bool
    sentence: str
    recall: float | None = None
    confidence: float | None = None
    num_needed: int | None = None
    num_had: int | None = None
    estimated: Interval | None = None


def certify(
    plan: QueuePlan,
    steps: Sequence[Step],
    labels: Mapping[int, bool],
    recall: float = RECALL,
    confidence: float = CONFIDENCE,
) -> Stop:
    """Whether at least `recall` of all keepers were found, with `confidence` over the draw of the control sample.

    All control items need a vote first, also those that nobody can judge. Then the number r of keepers among them is
    known, and the harvest must reach the j-th of these, j = `required_rank`. Since j is fixed before the order is
    looked at, people may ask after every batch. Recall and confidence must be chosen before the round opens.

    plan, steps: of the harvest. labels: row -> whether people keep the item.
    """
    target = f"{format_share(recall)} of all keepers"
    control = plan.control.tolist()

    def stop(may_stop: bool, needed: int | None, had: int | None, sentence: str) -> Stop:
        return Stop("certificate", may_stop, sentence, recall, confidence, needed, had)

    num_open = sum(row not in labels for row in control)
    if num_open:
        counts = f"{format_count(num_open)} of the {format_count(len(control))} control pictures have no vote"
        return stop(False, None, None, f"No certificate yet: {counts}.")
    keepers = {row for row in control if labels[row]}
    needed = required_rank(len(keepers), recall, confidence)
    if needed is None:
        must_hold = controls_needed(recall, confidence)
        reason = f"{format_count(len(control))} control pictures hold {len(keepers)} keepers, and {target} with "
        reason += f"{format_share(confidence)} confidence need {must_hold}"
        size = f", in a sample of about {_sample_size(must_hold, len(keepers), len(control))}" if keepers else ""
        return stop(False, must_hold, len(keepers), f"No certificate: {reason}{size}. The sample cannot grow any more.")
    num_reached = num_waiting = 0
    for step in steps:
        if step.why != "control":
            num_waiting += step.row not in labels
            num_reached += step.row in keepers
            if num_reached == needed:
                break
    counts = f"of the {len(keepers)} keepers in the control sample {needed} must be reached, {num_reached} are"
    if num_reached < needed:
        return stop(False, needed, num_reached, f"No certificate yet: {counts}.")
    if num_waiting:
        waiting = f"votes are missing on {format_count(num_waiting)} of the pictures handed out before"
        return stop(False, needed, num_reached, f"No certificate yet: {waiting}.")
    sentence = f"Certified with {format_share(confidence)} confidence: at least {target} were found ({counts})."
    return stop(True, needed, num_reached, sentence)


def required_rank(num_keepers: int, recall: float = RECALL, confidence: float = CONFIDENCE) -> int | None:
    """How many of the `num_keepers` keepers in a control sample must be reached; None if even all are not enough.

    The smallest j with P(Binomial(num_keepers, recall) < j) >= confidence (Lewis et al. 2021). The sample is
    drawn without replacement, which only increases the confidence.
    """
    _check(recall, confidence)
    ranks = np.arange(1, num_keepers + 1)
    is_enough = scipy.special.bdtr(ranks - 1.0, num_keepers, recall) >= confidence
    return int(ranks[np.argmax(is_enough)]) if is_enough.any() else None


def controls_needed(recall: float = RECALL, confidence: float = CONFIDENCE) -> int:
    """The fewest keepers in a control sample with which a certificate is possible: recall^n <= 1 - confidence."""
    _check(recall, confidence)
    num = max(1, math.floor(math.log(1 - confidence) / math.log(recall)))
    while required_rank(num, recall, confidence) is None:
        num += 1
    return num


def misses_in_a_row(steps: Sequence[Step], labels: Mapping[int, bool], num: int) -> Stop:
    """Whether the last `num` items that the probe chose, and that people voted on, held no keeper."""
    votes = [labels[step.row] for step in steps if step.why == "best" and step.is_shown and step.row in labels]
    had = next((i for i, kept in enumerate(reversed(votes)) if kept), len(votes))
    sentence = (
        f"The last {format_count(had)} pictures of the probe held no keeper; the rule asks for {format_count(num)}. "
        "This promises nothing about keepers that look different from those found so far."
    )
    return Stop("heuristic", had >= num, sentence, num_needed=num, num_had=had)


def estimate(
    plan: QueuePlan,
    steps: Sequence[Step],
    labels: Mapping[int, bool],
    ranking: Ranking | None,
    recall: float = RECALL,
) -> Stop:
    """Whether the estimated recall, less NUM_DEVIATIONS of its standard deviations, is at least `recall`.

    A logistic curve turns scores into probabilities. It is fitted to the votes on the control sample, the only ones on
    items that the probe neither chose nor learned from. If those are all the same there is no estimate.
    ranking: the newest one; None if there is no probe yet.
    """
    if ranking is None:
        return Stop("estimator", False, "No estimate yet: no probe has learned from the votes.", recall)
    rows = np.array([row for row in plan.control.tolist() if row in labels], dtype=np.int64)
    kept = np.array([labels[row] for row in rows.tolist()], dtype=bool)
    if kept.all() or not kept.any():
        sentence = f"No estimate yet: {int(kept.sum())} of {format_count(len(rows))} control pictures are keepers."
        return Stop("estimator", False, sentence, recall)
    probabilities = calibrate(ranking.scores, rows, kept)
    is_reached = np.zeros(plan.num_items, bool)
    is_reached[[step.row for step in steps if step.why != "control"]] = True
    found, deviation = estimate_recall(probabilities, is_reached)
    low, high = (min(1.0, max(0.0, found + sign * NUM_DEVIATIONS * deviation)) for sign in (-1, 1))
    sentence = (
        f"Estimated: {format_share(found)} of all keepers were found ({format_share(low)} to {format_share(high)}), if "
        f"the probe's scores can be read as probabilities; {format_share(recall)} are asked for."
    )
    return Stop("estimator", low >= recall, sentence, recall, estimated=Interval(100 * found, 100 * low, 100 * high))


def calibrate(scores: np.ndarray, rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return each item's probability of being a keeper, float64 (N,), by a logistic curve (Platt 1999).

    scores: (N,). rows: (C,), items that did not train the probe. kept: bool (C,), both answers.
    """
    from sklearn.linear_model import LogisticRegression

    centre, scale = float(scores[rows].mean()), float(scores[rows].std()) or 1.0
    x = ((scores - centre) / scale).astype(np.float64)[:, None]
    return LogisticRegression().fit(x[rows], kept).predict_proba(x)[:, 1]


def estimate_recall(probabilities: np.ndarray, is_reached: np.ndarray) -> tuple[float, float]:
    """Return the expected recall (0..1) of the reached items (bool, N) and its standard deviation, by QuantCI.

    probabilities: (N,), each item's of being a keeper. The deviation is first-order, of independent items.
    """
    variances = probabilities * (1 - probabilities)
    reached, total = float(probabilities[is_reached].sum()), float(probabilities.sum())
    variance = (reached / total**2) ** 2 * float(variances.sum()) + float(variances[is_reached].sum()) / total**2
    return reached / total, math.sqrt(variance)


def elusion(num: int, num_kept: int, confidence: float = CONFIDENCE) -> Interval:
    """The share of keepers, in per cent, among items that were never shown, from a uniform sample of them.

    num, num_kept: of the sample. `high` is a one-sided exact bound (Clopper and Pearson): 0 of n gives about 300 / n.
    """
    found = exact_rate(num_kept, num, 2 * confidence - 1)  # each end of a two-sided interval has half of the rest
    return Interval(found.estimate, 0.0, found.high)


def _sample_size(needed: int, num_keepers: int, num_control: int) -> str:
    """About how many pictures hold `needed` keepers at the rate of the sample, rounded up to two digits."""
    num = needed * num_control / num_keepers
    unit = 10 ** max(0, len(str(int(num))) - 2)
    return format_count(math.ceil(num / unit) * unit)


def _check(recall: float, confidence: float) -> None:
    if not (0 < recall < 1 and 0 < confidence < 1):
        raise ValueError(f"recall {recall} and confidence {confidence} must be between 0 and 1")
