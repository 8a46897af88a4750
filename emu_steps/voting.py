"""Rounds of votes: the rubric panel votes on items that no person voted on, and an asset records the round's log.

A round is an asset that only appends: people's votes can be added to its log at any time, by VoteLog.append.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pandas as pd

from emu_data.samples import decode_rgb
from emu_data.shards import read_manifest, read_many, square
from emu_data.votes.agreement import measure_agreement
from emu_data.votes.items import Pair, Panel, Picture
from emu_data.votes.log import VoteLogError
from emu_data.votes.panels.curation import CurationPanel, CurationRound
from emu_data.votes.rounds import RecordedRound, check_log, num_new, open_log, read_round, record_round
from emu_data.votes.vote import Vote, counted, counted_of_raters, describe_voters, is_about
from emu_steps.captioning import ASSET as CAPTIONS
from emu_steps.captioning import captions_grown
from emu_steps.layout import Layout
from emu_steps.params import CurationVotes, Params
from emu_steps.params.kinds import Voters

ROUNDS = ("generalist", "specialist", "appeal", "faithfulness")
VIEW_SIZE = 128  # px per side that the panel sees; its criteria were fitted at 64 and 128 px
CHUNK = 1000  # pictures in memory at once; chosen here
# How many pictures each rater of the panel may keep, as a multiple of the wanted number: generalists aim at recall.
KEEP_FACTOR = {"generalist": 1.2, "specialist": 1.0}  # chosen here


@dataclass(frozen=True)
class Ballots:
    """A panel's votes on the items of a round. items: key -> digest of what is shown (votes.vote.counted). voters:
    whose votes count."""

    panel: list[Vote]
    items: dict[str, str]
    voters: Voters = "people, then panel"


Item = TypeVar("Item", Picture, Pair)


def cast_ballots(panel: Panel[Item], items: Sequence[Item], voters: Voters) -> Ballots:
    """Have the panel vote on all items, including those that people voted on, so that its votes on the others do not
    change whenever a person votes.
    """
    return Ballots(panel.vote(items), {item.key: item.seen for item in items}, voters)


@dataclass(frozen=True)
class Tallied:
    """A recorded round. head: the head hash of its log. voters: who cast the votes that count, in words. not_shown: how
    many votes of people are on pictures that are no longer shown, in words; "" if none.
    """

    head: str
    metrics: dict[str, float]
    voters: str
    not_shown: str

    @property
    def tables(self) -> dict[str, str]:
        """What Dagster's page shows about the round."""
        return {"voters": self.voters, "head": self.head, **({"not_counted": self.not_shown} if self.not_shown else {})}


def generalist_ballots(layout: Layout, section: CurationVotes, num_wanted: int) -> Ballots:
    """Return the generalists' panel's votes on all of data/filtered."""
    return _curation_ballots(layout, "generalist", section, shown_to_generalists(layout), num_wanted)


def specialist_ballots(layout: Layout, section: CurationVotes, num_wanted: int) -> Ballots:
    """Return the specialists' panel's votes on the pictures that the generalists chose."""
    return _curation_ballots(layout, "specialist", section, shown_to_specialists(layout), num_wanted)


def shown_to_generalists(layout: Layout) -> list[str]:
    """Return the keys of the pictures that generalists vote on: all of data/filtered."""
    return read_manifest(layout.filtered)["key"].tolist()


def shown_to_specialists(layout: Layout) -> list[str]:
    """Return the keys of the pictures that specialists vote on: those that the generalists chose, sorted."""
    return sorted(pd.read_parquet(layout.generalist / "selection.parquet")["key"])


def digest_pictures(layout: Layout, keys: Sequence[str]) -> dict[str, str]:
    """Return key -> digest of the picture's bytes in data/filtered, for `counted`, as the cascade computed it."""
    manifest = read_manifest(layout.filtered)
    found = dict(zip(manifest["key"], manifest["stored_sha256"], strict=True))
    return {key: found[key] for key in keys}


def _curation_ballots(
    layout: Layout, round_name: CurationRound, section: CurationVotes, keys: list[str], num_wanted: int
) -> Ballots:
    items, digests = [], digest_pictures(layout, keys)
    if section.voters == "people":
        return Ballots([], digests, "people")
    for start in range(0, len(keys), CHUNK):
        part = keys[start : start + CHUNK]
        samples = read_many(layout.filtered, part)
        items += [Picture(key, square(decode_rgb(samples[key].image), VIEW_SIZE), digests[key]) for key in part]
    share = min(1.0, KEEP_FACTOR[round_name] * num_wanted / max(1, len(keys)))
    return cast_ballots(CurationPanel(section.num_raters, section.seed, round_name, share), items, section.voters)


@contextmanager
def recorded_round(layout: Layout, name: str, ballots: Ballots) -> Iterator[Tallied]:
    """Append the panel's votes on items that no person voted on (or on all, if voters is `panel`), and lock the log
    until the `with` block ends, in which the caller records it.
    """
    folder, older, beside_people = layout.votes(name), older_log(layout, name), ballots.voters == "panel"
    with record_round(folder, ballots.panel, ballots.items, older, beside_people) as recorded:
        yield tally_round(recorded, ballots.items, ballots.voters)


def read_votes(layout: Layout, name: str, voters: Voters) -> RecordedRound:
    """Read the votes of those who decide, of the round as its asset last recorded it. Raises ValueError if that never
    happened; see emu_data.votes.rounds.read_round.
    """
    recorded = read_round(layout.votes(name), older_log(layout, name))
    return replace(recorded, votes=admitted(recorded.votes, voters))


def voters_of(params: Params, name: str) -> Voters:
    """Whose votes count in a round, by params.yaml."""
    return getattr(params, f"{name}_votes").voters


def admitted(votes: Sequence[Vote], voters: Voters) -> list[Vote]:
    """Return the votes of those who decide, in their order."""
    kinds = {"people": ("person",), "panel": ("rubric",)}.get(voters, ("person", "rubric"))
    return [vote for vote in votes if vote.rater_kind in kinds]


def describe_deciders(votes: Sequence[Vote], voters: Voters) -> str:
    """Who cast these votes, in words, and whether people's votes were left out."""
    left_out = "; people's votes do not count, since voters is `panel`" if voters == "panel" else ""
    return describe_voters(votes) + left_out


def older_log(layout: Layout, name: str) -> Path:
    """Return where version 0.1 kept the round's log: in a folder that an asset replaces."""
    return (
        layout.data
        / {
            "generalist": "curation/generalist_selection/votes.jsonl",
            "specialist": "curated/votes.jsonl",
            "appeal": "reports/appeal_report/votes.jsonl",
            "faithfulness": "reports/faithfulness_report/votes.jsonl",
        }[name]
    )


def tally_round(recorded: RecordedRound, items: dict[str, str], voters: Voters) -> Tallied:
    """Count a round's votes on `items`, and measure how well its raters agree."""
    votes = counted(admitted(recorded.votes, voters), items)
    people = {vote.rater for vote in votes if vote.rater_kind == "person"}
    num_elsewhere = sum(vote.rater_kind == "person" and not is_about(vote, items) for vote in recorded.votes)
    agreement = measure_agreement(counted_of_raters(recorded.votes, items))
    metrics = {
        "num_shown": len(items),
        "num_not_voted_on": len(set(items) - {vote.key for vote in votes}),
        "num_votes": len(votes),
        "num_votes_of_people": sum(vote.rater_kind == "person" for vote in votes),
        "num_people": len(people),
        "krippendorff_alpha": agreement.krippendorff_alpha.estimate,
        "gwet_ac1": agreement.gwet_ac1,
    }
    not_shown = f"{num_elsewhere} votes of people are on pictures that are no longer shown" if num_elsewhere else ""
    return Tallied(recorded.head, metrics, describe_deciders(votes, voters), not_shown)


@dataclass(frozen=True)
class Checked:
    """The result of verifying a round's log. report: the votes in it, or what is wrong with it."""

    round: str
    is_sound: bool
    report: str


def verify_rounds(layout: Layout, name: str | None = None) -> list[Checked]:
    """Verify the log of one round, or of all. Raises ValueError if there is no such round."""
    if name is not None and name not in ROUNDS:
        raise ValueError(f"there is no round {name!r}; there are: {', '.join(ROUNDS)}")
    return [_verify(layout, one) for one in ([name] if name else ROUNDS)]


def _verify(layout: Layout, name: str) -> Checked:
    log = open_log(layout.votes(name))
    if problems := check_log(layout.votes(name)):
        return Checked(name, False, "; ".join(problems))
    votes = log.read()
    report = f"{describe_voters(votes)} in the log, head {log.head()}" if votes else "no votes yet"
    return Checked(name, True, report)


def grows(key: str) -> bool:
    """Whether an asset records what people add to at any time."""
    return key == CAPTIONS or (key.endswith("_votes") and key.removesuffix("_votes") in ROUNDS)


def grown(layout: Layout, key: str, recorded_head: str) -> str | None:
    """Say why the asset of a round, or of captions, must record again; None if it need not, and for other assets.
    recorded_head: the data version with which it was last materialised.
    """
    if key == CAPTIONS:
        return captions_grown(layout, recorded_head)
    name = key.removesuffix("_votes")
    if not grows(key):
        return None
    try:
        num = num_new(layout.votes(name), recorded_head)
    except VoteLogError:  # the asset repairs the log, or reports what is wrong
        return "its log was altered"
    if num is None:
        return "its log is not the one that was recorded"
    return f"{num} new vote{'s' if num > 1 else ''}" if num else None
