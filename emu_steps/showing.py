"""`emu show KEY`: everything that is recorded about one picture, from the ledger to the curated set.

Nothing is measured or decided again: values and gates come from the ledger, votes from the recorded rounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from emu_data.formatting import format_significant
from emu_data.ledger import LIMITS, Limit, open_ledger
from emu_data.shards import MANIFEST_NAME, read_manifest, read_many
from emu_data.votes.rounds import EXPORT_NAME
from emu_data.votes.vote import Vote, counted
from emu_steps.layout import Layout
from emu_steps.params import Params, Pretraining
from emu_steps.params.kinds import Voters
from emu_steps.training_jobs import passed_sql
from emu_steps.voting import admitted, digest_pictures, read_votes, voters_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ROUNDS = ("generalist", "specialist")  # rounds of votes on single pictures; the others are on pairs
PRETRAININGS = ("pretrained_low", "pretrained_mid", "pretrained_full")


@dataclass(frozen=True)
class Held:
    """A measured value with its limit. value: None if it was not measured, or the corpus has none. threshold: None if
    the limit is switched off.
    """

    limit: Limit
    value: float | None
    threshold: float | None

    @property
    def breaks(self) -> bool:
        """Whether the value is beyond the threshold; False if either is missing."""
        if self.value is None or self.threshold is None:
            return False
        return self.value < self.threshold if self.limit.is_minimum else self.value > self.threshold


@dataclass(frozen=True)
class Spoken:
    """A vote on the picture in a recorded round. counts: whether it counts now (emu_data.votes.vote.counted)."""

    vote: Vote
    counts: bool


@dataclass(frozen=True)
class Picture:
    """What is recorded about a picture. row: its row in the ledger. is_final: whether the gates that compare pictures
    have decided too. twins: key of each near-twin -> the gate that dropped it, "" for the one that was kept. went:
    where the picture is now, in words.
    """

    key: str
    row: Mapping[str, Any]
    is_final: bool
    held: tuple[Held, ...]
    twins: Mapping[str, str]
    spoken: tuple[Spoken, ...]
    went: tuple[str, ...]

    @property
    def gate(self) -> str:
        """The first gate that it failed, "" if it passed all gates that have decided."""
        return self.row["first_failed_gate"]


def find_picture(layout: Layout, params: Params, key: str) -> Picture:
    """Collect what is recorded about a picture. Raises ValueError if there is no ledger yet, or no such key in it."""
    final = layout.filtered / "ledger"
    is_final = any(final.glob("*.parquet"))
    ledger = final if is_final else layout.ledger
    if not any(ledger.glob("*.parquet")):
        raise ValueError(
            f"nothing is known about {key!r}, because no picture has been measured yet: run "
            "`emu materialize filtered_corpus --upstream` first"
        )
    with open_ledger(ledger) as con:
        rows = con.execute("SELECT * FROM ledger WHERE key = ?", [key]).df()
        if not len(rows):
            num, first, last = con.execute("SELECT count(*), min(key), max(key) FROM ledger").fetchall()[0]
            raise ValueError(f"there is no picture {key!r} in {ledger}; its {num} keys range from {first} to {last}")
        row = {str(name): None if pd.isna(value) else value for name, value in rows.iloc[0].items()}
        twins: dict[str, str] = {}
        if row.get("cluster"):
            asked = "SELECT key, first_failed_gate FROM ledger WHERE cluster = ? AND key <> ? ORDER BY key"
            twins = dict(con.execute(asked, [row["cluster"], key]).fetchall())
        learned = [name for name in PRETRAININGS if is_final and _is_learned(con, key, getattr(params, name))]
    policy = params.filter_ledger.policy
    held = tuple(
        Held(limit, row[limit.column], getattr(policy, limit.field)) for limit in LIMITS if limit.column in row
    )
    spoken = tuple(vote for name in ROUNDS for vote in _votes_on(layout, name, key, voters_of(params, name)))
    return Picture(key, row, is_final, held, twins, spoken, tuple(_where(layout, key, learned)))


def _is_learned(con: "DuckDBPyConnection", key: str, section: Pretraining) -> bool:
    where, given = passed_sql(section.gates, section.min_side)
    return (
        con.execute(f"SELECT 1 FROM ledger WHERE key = $key AND {where}", {"key": key, **given}).fetchone() is not None
    )


def _votes_on(layout: Layout, name: str, key: str, voters: Voters) -> list[Spoken]:
    """Return every vote on the picture in a recorded round; none if nothing was recorded. voters: whose votes count."""
    if not (layout.votes(name) / EXPORT_NAME).is_file():
        return []
    votes = [vote for vote in read_votes(layout, name, "people, then panel").votes if vote.key == key]
    shown = digest_pictures(layout, [key]) if _is_in(layout.filtered, key) else {}
    standing = counted(admitted(votes, voters), shown)
    return [Spoken(vote, vote in standing) for vote in votes]


def _is_in(folder: Path, key: str) -> bool:
    return (folder / MANIFEST_NAME).is_file() and key in set(read_manifest(folder)["key"])


def _where(layout: Layout, key: str, learned: list[str]) -> list[str]:
    found = []
    if _is_in(layout.filtered, key):
        found.append("in data/filtered")
    selection = layout.generalist / "selection.parquet"
    if selection.is_file() and key in set(pd.read_parquet(selection, columns=["key"])["key"]):
        found.append("chosen by the generalists")
    if _is_in(layout.curated, key):
        caption = read_many(layout.curated, [key])[key].caption
        found.append(f"in data/curated, with the caption {caption!r}: the model is tuned on it")
    return [*found, *(f"passed the gates of {name}, which learns from it" for name in learned)]


def print_picture(picture: Picture, console: Console | None = None) -> None:
    """Print a picture as `emu show` does. console: by default the terminal."""
    console = console or Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    row = picture.row
    say(f"{picture.key}, shard {row['shard']}: {row['caption'] or 'no caption'}")
    for name in ("url", "error_message", "error"):
        if row.get(name):
            say(f"{name.replace('_', ' ')}: {row[name]}")
    console.print(_values(picture))
    say(_gate(picture))
    if picture.twins:
        say("near-twins: " + ", ".join(f"{key} ({gate or 'kept'})" for key, gate in picture.twins.items()))
    if row.get("concept"):
        say(f"concept: {row['concept']}")
    if picture.spoken:
        console.print(_votes(picture))
    else:
        say("no votes")
    for text in picture.went or ("it was not used further",):
        say(text)


def _values(picture: Picture) -> Table:
    table = Table(box=None, pad_edge=False)
    for title, justify in (("gate", False), ("value", False), ("", True), ("threshold", False), ("", False)):
        table.add_column(title, justify="right" if justify else "left")
    for held in picture.held:
        sign = "at least" if held.limit.is_minimum else "at most"
        value = "not measured" if held.value is None else format_significant(held.value)
        threshold = "off" if held.threshold is None else f"{sign} {format_significant(held.threshold)}"
        table.add_row(held.limit.gate, held.limit.column, value, threshold, "[red]fails[/]" if held.breaks else "")
    return table


def _gate(picture: Picture) -> str:
    gate, twin = picture.gate, picture.row.get("duplicate_of")
    if gate == "duplicate":
        return f"dropped by: duplicate; {twin} was kept instead"
    if gate:
        return f"dropped by: {gate}"
    if picture.is_final:
        return "passed every gate"
    return "passed the gates for single pictures; `emu materialize filtered_corpus` decides about duplicates and quotas"


def _votes(picture: Picture) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("round", "rater", "", "vote", "why", "when", ""):
        table.add_column(title, overflow="fold")
    for spoken in picture.spoken:
        vote = spoken.vote
        cells = (vote.round, vote.rater, vote.rater_kind, vote.decision, vote.reason, vote.time)
        escaped = [cell.replace("[", r"\[") for cell in cells]
        table.add_row(*escaped, "counts" if spoken.counts else "does not count")
    return table
