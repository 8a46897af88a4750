"""What the asset of a round of votes writes and does."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg

    from emu_dagster.resources.recorder import Record
    from emu_steps.voting import Ballots


def round_outs(name: str) -> tuple[str, ...]:
    """Return the paths of a round's export, its log, the log's head, and the plans by which people voted. They are
    files and not the folder, because the folder also holds what is not data: a lock, or what an interrupted append
    left.
    """
    files = ("votes.parquet", "votes.jsonl", "votes.jsonl.head.json", "plan.json")
    return tuple(f"data/votes/{name}/{file}" for file in files)


def hold_round(record: "Record", name: str, ballots: "Ballots") -> "dg.MaterializeResult":
    """Append the panel's votes, and record the log while it is locked. The data version is the head of the log."""
    from emu_steps.voting import recorded_round

    with recorded_round(record.layout, name, ballots) as found:
        return record.result(found.metrics, tables=found.tables, data_version=found.head)
