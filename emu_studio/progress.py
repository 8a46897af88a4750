"""How a round is going: what is done and when it will end, whether raters agree, and how each of them works."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from emu_data.votes.agreement import Agreement, measure_agreement
from emu_data.votes.preference import PositionBias, SelfConsistency, position_bias, self_consistency
from emu_data.votes.vote import (
    ABSTENTIONS,
    CURATION_DECISIONS,
    SKIPPED,
    Vote,
    counted,
    counted_of_raters,
    counted_repeats,
    votes_to_frame,
)
from emu_studio.access import CHOOSING
from emu_studio.plan import UNSAFE, RoundPlan
from emu_studio.records import Record, Word

LARGE = 20_000  # words: the numbers of so many take 0.4 s of one core (measured); those of a larger round are kept
KEPT = timedelta(seconds=10)  # chosen here
RECENT = timedelta(days=3)  # whose pace says when the round will end; chosen here
SHORTEST = timedelta(days=1)  # over which a pace is taken: people do not work around the clock; chosen here
# A rater is warned of when so many of at least so many decisions were faster than the plan's min_seconds; chosen here.
TOO_FAST_SHARE, TOO_FAST_LEAST = 0.1, 10


@dataclass(frozen=True)
class Pace:
    """What is done. num_done of num_wanted votes are there, those beyond an item's raters_per_item not counted;
    num_finished items have all theirs. num_kept: pictures that anybody kept, None where nothing is chosen. per_day:
    votes per day, lately. end: when all is done at that pace; None where there is no pace.
    """

    num_items: int
    num_finished: int
    num_wanted: int
    num_done: int
    num_kept: int | None
    per_day: float
    end: datetime | None


@dataclass(frozen=True)
class RaterWork:
    """How one rater works. num_decided: items on which their word counts. last: when they last decided, in ISO 8601.
    seconds: the median per decision, None if no decision has a time; num_too_fast of num_timed were faster than the
    plan's min_seconds. num_right of num_gold known answers were theirs. consistency, bias: of pairs, else None.
    num_unedited: captions that are a model's draft as it was.
    """

    pseudonym: str
    num_decided: int
    num_skipped: int
    last: str
    seconds: float | None
    num_timed: int = 0
    num_too_fast: int = 0
    num_gold: int = 0
    num_right: int = 0
    consistency: SelfConsistency | None = None
    bias: PositionBias | None = None
    num_unedited: int = 0

    @property
    def is_too_fast(self) -> bool:
        """Whether a lead should talk with them about it."""
        return self.num_timed >= TOO_FAST_LEAST and self.num_too_fast >= TOO_FAST_SHARE * self.num_timed


@dataclass(frozen=True)
class Progress:
    """All numbers of a round but what its votes say. consistency, bias: of all raters, None where nothing is compared.
    disputed, unsafe: places of items on which raters disagree, or that one of them called unsafe, without an
    adjudication; adjudicated: those with one.
    """

    pace: Pace
    agreement: Agreement
    raters: list[RaterWork]
    consistency: SelfConsistency | None
    bias: PositionBias | None
    disputed: list[int]
    unsafe: list[int]
    adjudicated: list[int]


class Numbers:
    """The numbers of all rounds, measured one at a time. Those of a large round take seconds, which voters feel; so
    they are kept for a while."""

    def __init__(self) -> None:
        self._lock, self._known = threading.Lock(), dict[str, _Measured]()

    def of(self, record: Record, now: datetime) -> Progress:
        """Return the numbers of a round, of a large one as they were KEPT before at most."""
        with self._lock:
            known = self._known.get(record.round.name)
            if known is None or not known.is_good(record, now):
                known = self._known[record.round.name] = _Measured(measure(record, now), _state(record), now)
            return known.progress


@dataclass(frozen=True)
class _Measured:
    """Numbers, of which state of the round, and when."""

    progress: Progress
    state: tuple[str, int, str | None]
    time: datetime

    def is_good(self, record: Record, now: datetime) -> bool:
        return (self.state == _state(record) or len(record.words) >= LARGE) and now - self.time < KEPT


def _state(record: Record) -> tuple[str, int, str | None]:
    return record.head, len(record.captions), record.round.closed


def measure(record: Record, now: datetime) -> Progress:
    """Return the numbers of a round at a time, in UTC."""
    plan = record.round.plan
    if plan.question == "captions":
        return _measure_captions(record, now)
    place_of = {key: place for place, item in enumerate(record.items) for key in item.keys}
    own = counted_of_raters(record.votes, record.shown)
    repeats = counted_repeats(record.votes, record.shown)
    adjudicated = {place_of[v.key] for v in counted(record.votes, record.shown) if v.is_adjudication}
    kept = {v.key for v in own if v.decision == "keep"} if plan.question in CHOOSING else None
    return Progress(
        pace=_pace(record, _deciders(own, place_of), [w.vote.time for w in record.words if _is_decision(w)], kept, now),
        agreement=measure_agreement(own),
        raters=_raters(record, own, repeats, place_of),
        consistency=_consistency(plan, own, repeats),
        bias=_bias(plan, own),
        disputed=[] if plan.is_pairs else _disputed(own, place_of, adjudicated),
        unsafe=sorted({place_of[v.key] for v in own if v.reason == UNSAFE} - adjudicated),
        adjudicated=sorted(adjudicated),
    )


def _measure_captions(record: Record, now: datetime) -> Progress:
    """The numbers of a round in which captions are written: of votes it has only skips, and nothing to agree on."""
    writers: dict[int, set[str]] = {}
    for one in record.captions:
        writers.setdefault(one.place, set()).add(one.rater)
    last = {(one.rater, one.place): one for one in record.captions}
    skipped = {(w.vote.rater, w.place): w.vote.decision for w in record.words}
    rows = []
    for rater in sorted({who for who, _ in [*last, *skipped]}):
        mine = [one for one in record.captions if one.rater == rater]
        seconds = [one.seconds for one in mine if one.seconds is not None]
        rows.append(
            RaterWork(
                pseudonym=rater,
                num_decided=len({one.place for one in mine}),
                num_skipped=sum(said == SKIPPED for (who, _), said in skipped.items() if who == rater),
                last=max([one.time for one in mine] + [w.vote.time for w in record.words if w.vote.rater == rater]),
                seconds=median(seconds) if seconds else None,
                num_unedited=sum(one.is_unedited for (who, _), one in last.items() if who == rater),
            )
        )
    pace = _pace(record, writers, [one.time for one in record.captions], None, now)
    return Progress(pace, measure_agreement([]), rows, None, None, [], [], [])


def _deciders(own: Sequence[Vote], place_of: Mapping[str, int]) -> dict[int, set[str]]:
    """place -> whose word on it counts."""
    raters: dict[int, set[str]] = {}
    for vote in own:
        raters.setdefault(place_of[vote.key], set()).add(vote.rater)
    return raters


def _pace(
    record: Record, raters: Mapping[int, set[str]], times: Sequence[str], kept: set[str] | None, now: datetime
) -> Pace:
    """raters: place -> who did it; times: of all that was done, corrections among them."""
    plan = record.round.plan
    num_wanted = len(record.items) * plan.raters_per_item
    num_done = sum(min(len(who), plan.raters_per_item) for who in raters.values())
    per_day = _per_day(times, now)
    left = num_wanted - num_done
    end = now + timedelta(days=left / per_day) if per_day and left and record.round.closed is None else None
    return Pace(
        num_items=len(record.items),
        num_finished=sum(len(who) >= plan.raters_per_item for who in raters.values()),
        num_wanted=num_wanted,
        num_done=num_done,
        num_kept=None if kept is None else len(kept),
        per_day=per_day,
        end=end,
    )


def _per_day(times: Sequence[str], now: datetime) -> float:
    """How many per day, over RECENT or since the first if that is less, but never less than SHORTEST."""
    found = [datetime.fromisoformat(one) for one in times if one]
    if not found:
        return 0.0
    span = max(SHORTEST, min(RECENT, now - min(found)))
    return sum(now - one <= span for one in found) / (span / timedelta(days=1))


def _is_decision(word: Word) -> bool:
    """Whether it is a first showing's decision: one per item, however many pictures a burst has."""
    vote = word.vote
    return not (word.is_rest or vote.is_repeat or vote.is_adjudication or vote.decision in ABSTENTIONS)


def _raters(
    record: Record, own: Sequence[Vote], repeats: Sequence[Vote], place_of: Mapping[str, int]
) -> list[RaterWork]:
    """A row per rater who said anything, by pseudonym."""
    plan = record.round.plan
    words: dict[str, list[Word]] = {}
    for word in record.words:
        if not word.is_rest and not word.vote.is_adjudication:
            words.setdefault(word.vote.rater, []).append(word)
    standing: dict[str, list[Vote]] = {}
    again: dict[str, list[Vote]] = {}
    for votes, by_rater in ((own, standing), (repeats, again)):
        for vote in votes:
            by_rater.setdefault(vote.rater, []).append(vote)
    rows = []
    for rater, said in sorted(words.items()):
        mine = standing.get(rater, [])
        places = {place_of[vote.key] for vote in mine}
        last = {w.place: w.vote.decision for w in said if not w.vote.is_repeat}
        gold = [(record.items[p].gold, last[p]) for p in places if record.items[p].gold is not None]
        seconds = [w.vote.seconds for w in said if _is_decision(w) and w.vote.seconds is not None]
        rows.append(
            RaterWork(
                pseudonym=rater,
                num_decided=len(places),
                num_skipped=sum(decision == SKIPPED for decision in last.values()),
                last=max(w.vote.time for w in said),
                seconds=median(seconds) if seconds else None,
                num_timed=len(seconds),
                num_too_fast=sum(one < plan.min_seconds for one in seconds),
                num_gold=len(gold),
                num_right=sum(known == given for known, given in gold),
                consistency=_consistency(plan, mine, again.get(rater, [])),
                bias=_bias(plan, mine),
            )
        )
    return rows


def _consistency(plan: RoundPlan, votes: Sequence[Vote], repeats: Sequence[Vote]) -> SelfConsistency | None:
    return self_consistency(votes_to_frame(votes), votes_to_frame(repeats)) if plan.is_pairs else None


def _bias(plan: RoundPlan, votes: Sequence[Vote]) -> PositionBias | None:
    return position_bias(votes_to_frame(votes)) if plan.is_pairs else None


def _disputed(own: Sequence[Vote], place_of: Mapping[str, int], adjudicated: set[int]) -> list[int]:
    """Places of items with a picture that some kept and others dropped, the most level first."""
    votes: dict[str, list[bool]] = {}
    for vote in own:
        if vote.decision in CURATION_DECISIONS:
            votes.setdefault(vote.key, []).append(vote.decision == "keep")
    level: dict[int, float] = {}
    for key, keeps in votes.items():
        if 0 < sum(keeps) < len(keeps) and place_of[key] not in adjudicated:
            apart = abs(sum(keeps) / len(keeps) - 0.5)
            level[place_of[key]] = min(apart, level.get(place_of[key], 1.0))
    return sorted(level, key=lambda place: (level[place], place))
