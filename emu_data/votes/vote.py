"""Raters' decisions on pictures and pairs, and which of them count (paper sec. 3.3, 3.4 and 4: the human steps).

There is one format for choosing pictures (keep / drop) and for comparing them side by side (A / B / tie / both /
neither), for people and for the rubric panel that stands in for them; `rater_kind` always distinguishes the two. Votes
are in an append-only log (log.py), which keeps every vote ever given; only `counted` decides which of them count now.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import pandas as pd

CURATION_DECISIONS = ("keep", "drop")
APPEAL_DECISIONS = ("A", "B", "tie")  # paper sec. 4: caption hidden
FAITHFULNESS_DECISIONS = ("A", "B", "both", "neither")  # paper sec. 4: caption shown
WITHDRAWN = "withdrawn"  # the rater takes back their vote on the item
SKIPPED = "skipped"  # the rater cannot or will not decide, and says why
UNSURE = "unsure"  # undecided for now; the item comes back to the same rater
ABSTENTIONS = (WITHDRAWN, SKIPPED, UNSURE)  # words that are kept and do not count
DECISIONS = frozenset((*CURATION_DECISIONS, *APPEAL_DECISIONS, *FAITHFULNESS_DECISIONS, *ABSTENTIONS))


@dataclass(frozen=True)
class Vote:
    """One decision of one rater on one picture or one pair of pictures. Raises ValueError for values that do not fit.

    decision: names the models (A, B), never the sides. side_order: which model was on the left ("AB": A, "BA": B, ""
    for a single picture). key: the picture's key or the pair's id. score: only of a rubric, 0..1 for a picture, A's
    minus B's for a pair; None for people. reason: why a picture was dropped. seconds: the time that the rater took.
    is_repeat: a pair shown again with swapped sides. time: UTC in ISO 8601, which `VoteLog.append` fills in for people;
    a panel's votes have none, so that a panel always writes the same bytes. seen: the digest of what was shown
    (`digest_picture`, `digest_pair`), "" if unknown.
    plan: the digest of the round's plan, guideline included, by which the rater worked. sheet: the contact sheet on
    which a picture was seen with others. source: where a vote that was not cast here comes from. "" if unknown.
    is_adjudication: the word of a lead who saw all raters' votes on a picture and decides it; see `counted`.
    """

    round: str
    rater: str
    rater_kind: Literal["person", "rubric"]
    key: str
    decision: str
    reason: str = ""
    score: float | None = None
    seconds: float | None = None
    side_order: str = ""
    is_repeat: bool = False
    time: str = ""
    seen: str = ""
    plan: str = ""
    sheet: str = ""
    source: str = ""
    is_adjudication: bool = False

    def __post_init__(self) -> None:
        for name in ("round", "rater", "key"):
            if not getattr(self, name):
                raise ValueError(f"a vote needs a {name}; got {self!r}")
        if self.rater_kind not in ("person", "rubric"):
            raise ValueError(f'rater_kind is {self.rater_kind!r}; it must be "person" or "rubric"')
        if self.decision not in DECISIONS:
            raise ValueError(f"decision is {self.decision!r}; it must be one of {', '.join(sorted(DECISIONS))}")
        if self.side_order not in ("", "AB", "BA"):
            raise ValueError(f'side_order is {self.side_order!r}; it must be "", "AB" or "BA"')
        if self.decision not in (*CURATION_DECISIONS, *ABSTENTIONS) and not self.side_order:
            raise ValueError(f"a side-by-side vote ({self.decision}) needs a side_order: which model was on the left")
        if self.is_adjudication and (self.side_order or self.decision not in (*CURATION_DECISIONS, WITHDRAWN)):
            raise ValueError("only pictures are adjudicated, as keep or drop; of pairs, preference is the result")


VOTE_COLUMNS = [field.name for field in fields(Vote)]


def round_score(score: float) -> float:
    """Return a rubric's score with six decimals, for recording: further ones may differ between machines."""
    return float(np.round(np.float64(score), 6))


def digest_picture(image: bytes) -> str:
    """Return `Vote.seen` of a picture: the SHA-256 of its encoded bytes in the shard, 64 hexadecimal digits."""
    return hashlib.sha256(image).hexdigest()


def digest_pair(image_a: bytes, image_b: bytes, caption: str = "") -> str:
    """Return `Vote.seen` of a pair: a SHA-256 of the encoded pictures of A and B and, if it was shown, the caption."""
    parts = [hashlib.sha256(part).digest() for part in (image_a, image_b, caption.encode())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def counted(votes: Iterable[Vote], items: Mapping[str, str]) -> list[Vote]:
    """Return the votes of one round that count: at most one per rater and item, in the order of first appearance.

    items: key -> digest of what is shown under that key now. A vote does not count if its key is not among the items,
    or its `seen` is another digest. A vote without `seen` (an older log, an import) counts by its key for a picture,
    but never for a pair, since the next evaluation uses a pair's number again. Of the other votes, the last of each
    rater on each item counts, unless it is one of ABSTENTIONS. Repeated showings are left out (`counted_repeats`). If a
    person voted on an item, the panel's votes on it do not count. If an item was adjudicated, only the last
    adjudication counts; the raters' votes stay in the log, and count again if it is withdrawn.

    Applying it to its own result changes nothing. Raises ValueError for votes of several rounds.
    """
    standing = [vote for vote in _standing(votes, items) if not vote.is_repeat]
    adjudicated = {vote.key for vote in standing if vote.is_adjudication}
    return [vote for vote in standing if vote.is_adjudication or vote.key not in adjudicated]


def counted_of_raters(votes: Iterable[Vote], items: Mapping[str, str]) -> list[Vote]:
    """Return what `counted` would if nothing had been adjudicated, for measures of how well raters agree."""
    return counted((vote for vote in votes if not vote.is_adjudication), items)


def counted_repeats(votes: Iterable[Vote], items: Mapping[str, str]) -> list[Vote]:
    """Return the votes on repeated showings that count, by the same rules as `counted`."""
    return [vote for vote in _standing(votes, items) if vote.is_repeat]


def _standing(votes: Iterable[Vote], items: Mapping[str, str]) -> list[Vote]:
    last: dict[tuple[str, ...], Vote] = {}
    rounds: set[str] = set()
    for vote in votes:
        rounds.add(vote.round)
        if is_about(vote, items):
            # of a picture's adjudications the last counts, whichever lead's it is
            who = ("lead", "") if vote.is_adjudication else (vote.rater_kind, vote.rater)
            last[*who, vote.key, "repeat" if vote.is_repeat else ""] = vote
    _refuse_several(rounds)
    standing = [vote for vote in last.values() if vote.decision not in ABSTENTIONS]
    by_people = {vote.key for vote in standing if vote.rater_kind == "person" and not vote.is_repeat}
    return [vote for vote in standing if vote.rater_kind == "person" or vote.key not in by_people]


def is_about(vote: Vote, items: Mapping[str, str]) -> bool:
    """Whether a vote is on something that is shown now; see `counted`."""
    if not vote.seen:
        return vote.key in items and not vote.side_order
    return items.get(vote.key) == vote.seen


def check_counted(votes: Sequence[Vote]) -> None:
    """Raise ValueError unless `counted` can have returned these votes; others would be counted twice."""
    _refuse_several({vote.round for vote in votes})
    said: set[tuple[str, str, str]] = set()
    kinds: dict[str, str] = {}
    for vote in votes:
        who = (vote.rater_kind, vote.rater, vote.key)
        if vote.is_repeat or vote.decision in ABSTENTIONS or who in said:
            raise ValueError(
                f"{vote.rater} has more than one vote on {vote.key}: pass the votes that counted() returns"
            )
        if kinds.setdefault(vote.key, vote.rater_kind) != vote.rater_kind:
            raise ValueError(f"people and a panel voted on {vote.key}: pass the votes that counted() returns")
        said.add(who)


def _refuse_several(rounds: Iterable[str]) -> None:
    names = sorted(set(rounds))
    if len(names) > 1:
        raise ValueError(f"votes of several rounds ({', '.join(names)}): count one round at a time")


def describe_voters(votes: Sequence[Vote]) -> str:
    """Say who voted, for labels: "412 votes of 5 people, 88 of the rubric panel".

    It says "not people" if no person voted.
    """
    people = [vote for vote in votes if vote.rater_kind == "person"]
    num_others = len(votes) - len(people)
    if not votes:
        return "no votes"
    if not people:
        return f"{_count(num_others, 'vote')} of the rubric panel, not people"
    num_raters = len({vote.rater for vote in people})
    text = f"{_count(len(people), 'vote')} of {num_raters} {'person' if num_raters == 1 else 'people'}"
    return f"{text}, {num_others} of the rubric panel" if num_others else text


def _count(num: int, noun: str) -> str:
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"


def votes_to_frame(votes: Sequence[Vote]) -> pd.DataFrame:
    """Return a row for every vote, with the columns of `Vote`, for `preference` and the reports."""
    return pd.DataFrame([vars(vote) for vote in votes], columns=VOTE_COLUMNS)
