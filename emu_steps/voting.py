"""Rounds of votes: what the rubric panel says where no person voted, and the recording of a round's log.

A round is an asset that appends and never replaces: its log takes people's votes at any time, by VoteLog.append.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from emu_data.records import decode_rgb
from emu_data.shards import read_manifest, read_many, square
from emu_data.votes.agreement import measure_agreement
from emu_data.votes.items import Pair, Panel, Picture
from emu_data.votes.log import VoteLogError
from emu_data.votes.panels.curation import CurationPanel, Stage
from emu_data.votes.rounds import Recorded, check_log, num_new, open_log, read_round, record_round
from emu_data.votes.vote import Vote, counted, describe_voters, digest_picture, is_about
from emu_steps.layout import Layout
from emu_steps.params import CurationVotes

ROUNDS = ("generalist", "specialist", "appeal", "faithfulness")
VIEW_SIZE = 128  # px that the panel sees; the criteria were fitted at 64 and 128
CHUNK = 1000  # pictures whose bytes are in memory at once
# Of the pictures shown, how many times the wanted number each rater may keep: generalists are tuned for recall.
KEEP_FACTOR = {"generalist": 1.2, "specialist": 1.0}  # chosen here


@dataclass(frozen=True)
class Ballots:
    """What a panel says of the items of a round. items: key -> digest of what is shown (votes.vote.counted)."""

    panel: list[Vote]
    items: dict[str, str]


Item = TypeVar("Item", Picture, Pair)


def cast_ballots(panel: Panel[Item], items: Sequence[Item]) -> Ballots:
    """Has the panel vote on all items, also on those that people voted on: so what it says of the others does not
    change with every vote that comes."""
    return Ballots(panel.vote(items), {item.key: item.seen for item in items})


@dataclass(frozen=True)
class Tallied:
    """A round as recorded. voters: who the votes that count are of, in words; not_shown: people's votes that are on
    other pictures than those shown now, in words, "" for none."""

    head: str
    metrics: dict[str, float]
    voters: str
    not_shown: str

    @property
    def tables(self) -> dict[str, str]:
        """What Dagster's page says of the round."""
        return {"voters": self.voters, "head": self.head, **({"not_counted": self.not_shown} if self.not_shown else {})}


def generalist_ballots(layout: Layout, section: CurationVotes, num_wanted: int) -> Ballots:
    """The generalists' panel on all of data/filtered."""
    return _curation_ballots(layout, "generalist", section, shown_to_generalists(layout), num_wanted)


def specialist_ballots(layout: Layout, section: CurationVotes, num_wanted: int) -> Ballots:
    """The specialists' panel on what the generalists let through."""
    return _curation_ballots(layout, "specialist", section, shown_to_specialists(layout), num_wanted)


def shown_to_generalists(layout: Layout) -> list[str]:
    return read_manifest(layout.filtered)["key"].tolist()


def shown_to_specialists(layout: Layout) -> list[str]:
    return sorted(pd.read_parquet(layout.generalist / "selection.parquet")["key"])


def digest_pictures(layout: Layout, keys: Sequence[str]) -> dict[str, str]:
    """key -> digest of the picture's bytes in data/filtered, for `counted`."""
    found = {}
    for start in range(0, len(keys), CHUNK):
        samples = read_many(layout.filtered, keys[start : start + CHUNK])
        found |= {key: digest_picture(sample.image) for key, sample in samples.items()}
    return {key: found[key] for key in keys}


def _curation_ballots(
    layout: Layout, stage: Stage, section: CurationVotes, keys: list[str], num_wanted: int
) -> Ballots:
    items = []
    for start in range(0, len(keys), CHUNK):
        part = keys[start : start + CHUNK]
        samples = read_many(layout.filtered, part)
        for key in part:
            image = samples[key].image
            items.append(Picture(key, np.asarray(square(decode_rgb(image), VIEW_SIZE)), digest_picture(image)))
    share = min(1.0, KEEP_FACTOR[stage] * num_wanted / max(1, len(keys)))
    return cast_ballots(CurationPanel(section.num_raters, section.seed, stage, share), items)


@contextmanager
def recorded_round(layout: Layout, name: str, ballots: Ballots) -> Iterator[Tallied]:
    """Appends the panel's votes where no person voted, and holds the log until the block is left: record it there."""
    with record_round(layout.votes(name), ballots.panel, ballots.items, older_log(layout, name)) as recorded:
        yield tally_round(recorded, ballots.items)


def read_votes(layout: Layout, name: str) -> Recorded:
    """The round as its asset recorded it last. ValueError where it never did; see emu_data.votes.rounds.read_round."""
    return read_round(layout.votes(name), older_log(layout, name))


def older_log(layout: Layout, name: str) -> Path:
    """Where version 0.1 kept the round's log: among what an asset replaced."""
    return (
        layout.data
        / {
            "generalist": "curation/generalist_selection/votes.jsonl",
            "specialist": "curated/votes.jsonl",
            "appeal": "reports/appeal_report/votes.jsonl",
            "faithfulness": "reports/faithfulness_report/votes.jsonl",
        }[name]
    )


def tally_round(recorded: Recorded, items: dict[str, str]) -> Tallied:
    """Counts of a round's votes about `items`, and whether its raters agree."""
    votes = counted(recorded.votes, items)
    people = {vote.rater for vote in votes if vote.rater_kind == "person"}
    num_elsewhere = sum(vote.rater_kind == "person" and not is_about(vote, items) for vote in recorded.votes)
    agreement = measure_agreement(votes)
    metrics = {
        "num_shown": len(items),
        "num_not_voted_on": len(set(items) - {vote.key for vote in votes}),
        "num_votes": len(votes),
        "num_votes_of_people": sum(vote.rater_kind == "person" for vote in votes),
        "num_people": len(people),
        "krippendorff_alpha": agreement.krippendorff_alpha.estimate,
        "gwet_ac1": agreement.gwet_ac1,
    }
    not_shown = f"{num_elsewhere} votes of people are on other pictures than those shown now" if num_elsewhere else ""
    return Tallied(recorded.head, metrics, describe_voters(votes), not_shown)


@dataclass(frozen=True)
class Checked:
    """A round's log as `verify_rounds` found it. told: what it holds, or what is wrong with it."""

    round: str
    is_sound: bool
    told: str


def verify_rounds(layout: Layout, name: str | None = None) -> list[Checked]:
    """The log of one round, or of all. ValueError for a round that there is not."""
    if name is not None and name not in ROUNDS:
        raise ValueError(f"there is no round {name!r}; there are: {', '.join(ROUNDS)}")
    return [_verify(layout, one) for one in ([name] if name else ROUNDS)]


def _verify(layout: Layout, name: str) -> Checked:
    log = open_log(layout.votes(name))
    if problems := check_log(layout.votes(name)):
        return Checked(name, False, "; ".join(problems))
    votes = log.read()
    told = f"{describe_voters(votes)} in the log, head {log.head()}" if votes else "no votes yet"
    return Checked(name, True, told)


def grown(layout: Layout, key: str, recorded_head: str) -> str | None:
    """Why the asset of a round has to record its log again, for people to read; None where it need not, and for other
    assets. recorded_head: the data version that it was last materialised with."""
    name = key.removesuffix("_votes")
    if name not in ROUNDS or name == key:
        return None
    try:
        num = num_new(layout.votes(name), recorded_head)
    except VoteLogError:  # the asset mends it, or says what is wrong
        return "its log is not as it was written"
    if num is None:
        return "its log is not the one that was recorded"
    return f"{num} new vote{'s' if num > 1 else ''}" if num else None
