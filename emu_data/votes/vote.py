"""People's decisions about pictures and pairs, and which of them count (paper sec. 3.3, 3.4 and 4: the human steps).

One format for choosing pictures (keep / drop) and for comparing them side by side (A / B / tie / both /
neither), and the same for people and for the rubric panel that stands in for them; `rater_kind` tells the
two apart for ever. Votes lie in an append-only log (vote_log.py), which holds every word that was ever said;
`counted` says which of them count now, and is the only place that does.
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
WITHDRAWN = "withdrawn"  # the rater takes back what they said of the item
DECISIONS = frozenset((*CURATION_DECISIONS, *APPEAL_DECISIONS, *FAITHFULNESS_DECISIONS, WITHDRAWN))


@dataclass(frozen=True)
class Vote:
    """One decision of one rater about one picture or one pair of pictures.

    `decision` names the models (A, B), never the sides; `side_order` says which of them stood on the left
    ("AB": A on the left, "BA": B on the left, "" where there is only one picture). `key` is the picture's
    key or the id of the pair. `score` is a rubric's own: 0..1 for a picture, A's less B's for a pair (None
    for people). `reason` says why a picture was dropped. `seconds` is the time the rater took. `is_repeat`
    marks a pair shown again with the sides swapped. `time` is UTC in ISO 8601; `VoteLog.append` fills it in
    for people; a panel's votes have none, so that the same panel writes the same bytes whenever it sits.
    `seen` is the digest of what was shown (`digest_picture`, `digest_pair`), "" where that is not known.
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
        if self.decision not in (*CURATION_DECISIONS, WITHDRAWN) and not self.side_order:
            raise ValueError(f"a side-by-side vote ({self.decision}) must say which model stood on the left")


VOTE_COLUMNS = [field.name for field in fields(Vote)]


def round_score(score: float) -> float:
    """A rubric's score as it is recorded: to six decimals, since finer ones may differ between machines."""
    return float(np.round(np.float64(score), 6))


def digest_picture(image: bytes) -> str:
    """`Vote.seen` of a picture: the SHA-256 of its encoded bytes as they lie in their shard, 64 hex digits."""
    return hashlib.sha256(image).hexdigest()


def digest_pair(image_a: bytes, image_b: bytes, caption: str = "") -> str:
    """`Vote.seen` of a pair: SHA-256 over the encoded pictures of A and B, and the caption where it was shown."""
    parts = [hashlib.sha256(part).digest() for part in (image_a, image_b, caption.encode())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def counted(votes: Iterable[Vote], items: Mapping[str, str]) -> list[Vote]:
    """The votes of one round that count: at most one of each rater on each item, in order of first appearance.

    items: key -> digest of what is shown under that key now. A vote on what is not shown is out: its key is
    not among the items, or its `seen` is another digest. A vote without `seen` (an older log, an import)
    counts by its key for a picture, and never for a pair, whose key is a mere number that the next
    evaluation uses again. Of the rest the last word of each rater on each item counts, unless it takes the
    vote back; second showings are left out (`counted_repeats`); and where any person voted on an item, the
    panel's votes on it do not count.

    Handing in what came out changes nothing. Raises ValueError for votes of several rounds.
    """
    return [vote for vote in _standing(votes, items) if not vote.is_repeat]


def counted_repeats(votes: Iterable[Vote], items: Mapping[str, str]) -> list[Vote]:
    """What raters said when they were shown an item again, by the same rules as `counted`."""
    return [vote for vote in _standing(votes, items) if vote.is_repeat]


def _standing(votes: Iterable[Vote], items: Mapping[str, str]) -> list[Vote]:
    last: dict[tuple[str, str, str, bool], Vote] = {}
    rounds: set[str] = set()
    for vote in votes:
        rounds.add(vote.round)
        if is_about(vote, items):
            last[vote.rater_kind, vote.rater, vote.key, vote.is_repeat] = vote
    _refuse_several(rounds)
    standing = [vote for vote in last.values() if vote.decision != WITHDRAWN]
    by_people = {vote.key for vote in standing if vote.rater_kind == "person" and not vote.is_repeat}
    return [vote for vote in standing if vote.rater_kind == "person" or vote.key not in by_people]


def is_about(vote: Vote, items: Mapping[str, str]) -> bool:
    """Whether the vote is on something that is shown now; see `counted`."""
    if not vote.seen:
        return vote.key in items and not vote.side_order
    return items.get(vote.key) == vote.seen


def check_counted(votes: Sequence[Vote]) -> None:
    """Raises ValueError unless these can be votes that `counted` returned: whoever sums them up would count twice."""
    _refuse_several({vote.round for vote in votes})
    said: set[tuple[str, str, str]] = set()
    kinds: dict[str, str] = {}
    for vote in votes:
        who = (vote.rater_kind, vote.rater, vote.key)
        if vote.is_repeat or vote.decision == WITHDRAWN or who in said:
            raise ValueError(f"{vote.rater} has more than one word on {vote.key}: hand in what counted() returns")
        if kinds.setdefault(vote.key, vote.rater_kind) != vote.rater_kind:
            raise ValueError(f"people and a panel voted on {vote.key}: hand in what counted() returns")
        said.add(who)


def _refuse_several(rounds: Iterable[str]) -> None:
    names = sorted(set(rounds))
    if len(names) > 1:
        raise ValueError(f"votes of several rounds ({', '.join(names)}): count one round at a time")


def describe_voters(votes: Sequence[Vote]) -> str:
    """Who voted, for labels: "412 votes of 5 people, 88 of the rubric panel".

    Says "not people" wherever no person voted.
    """
    people = [vote for vote in votes if vote.rater_kind == "person"]
    num_others = len(votes) - len(people)
    if not votes:
        return "no votes"
    if not people:
        return f"{_count(num_others, 'vote')} of the rubric panel, not people"
    num_raters = len({vote.rater for vote in people})
    told = f"{_count(len(people), 'vote')} of {num_raters} {'person' if num_raters == 1 else 'people'}"
    return f"{told}, {num_others} of the rubric panel" if num_others else told


def _count(num: int, noun: str) -> str:
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"


def votes_to_frame(votes: Sequence[Vote]) -> pd.DataFrame:
    """A row for every vote with the columns of `Vote`, for `preference` and the reports."""
    return pd.DataFrame([vars(vote) for vote in votes], columns=VOTE_COLUMNS)
