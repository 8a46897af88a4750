"""What the asset of a round of votes writes and does."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg

    from emu_dagster.resources.recorder import Record
    from emu_steps.voting import Ballots


def round_outs(name: str) -> tuple[str, ...]:
    """A round's export, and its log with the head. Files and not the folder: what else lies there (a lock, a piece that
    an interrupted append left) is no data."""
    return tuple(f"data/votes/{name}/{file}" for file in ("votes.parquet", "votes.jsonl", "votes.jsonl.head.json"))


def hold_round(record: "Record", name: str, ballots: "Ballots") -> "dg.MaterializeResult":
    """Appends the panel's votes, and records the log while it is held. The data version is the log's head."""
    from emu_steps.voting import recorded_round

    with recorded_round(record.layout, name, ballots) as found:
        return record.result(found.metrics, tables=found.tables, data_version=found.head)
