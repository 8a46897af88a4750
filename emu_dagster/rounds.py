"""What the asset of a round of votes does."""

from typing import TYPE_CHECKING

from emu_steps.voting import Ballots, recorded_round

if TYPE_CHECKING:
    import dagster as dg

    from emu_dagster.recording import Record


def hold_round(record: "Record", name: str, ballots: Ballots) -> "dg.MaterializeResult":
    """Appends the panel's votes, and records the log while it is held. The data version is the log's head."""
    with recorded_round(record.layout, name, ballots) as found:
        return record.result(found.metrics, tables=found.tables, data_version=found.head)
