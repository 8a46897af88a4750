"""The needles: two stages of voting and a written caption each (Emu paper, sec. 3.3, items 5 to 7).

Where no person is at hand a rubric panel votes, labelled as such in every vote; people's votes have the same format.
"""

import dagster as dg

from emu_dagster.declaring import declared
from emu_dagster.recording import Record

GROUP = "curation"


@declared(group=GROUP, kinds={"parquet"}, reads=["filtered_corpus"], params=["generalist_selection"])
def generalist_selection(record: Record) -> dg.MaterializeResult:
    """Generalists drop what is of low and middling quality; tuned for recall. The paper's 20 K."""
    from emu_dagster.voting import hold_generalist_round

    outcome = hold_generalist_round(record.layout, record.params.generalist_selection)
    return record.result(outcome.metrics, pictures={"kept": outcome.kept, "dropped": outcome.dropped})


@declared(
    group=GROUP,
    kinds={"webdataset", "parquet"},
    reads=["generalist_selection", "filtered_corpus"],
    params=["curated_set"],
)
def curated_set(record: Record) -> dg.MaterializeResult:
    """Specialists keep the few that are exceptional, and each gets a written caption. The paper's 2 K."""
    from emu_dagster.voting import hold_specialist_round

    outcome = hold_specialist_round(record.layout, record.params.curated_set)
    return record.result(outcome.metrics, pictures={"kept": outcome.kept, "dropped": outcome.dropped})
