"""The needles: two stages of voting and a written caption each (Emu paper, sec. 3.3, items 5 to 7).

Where no person is at hand a rubric panel votes, labelled as such in every vote; people's votes have the same format.
"""

import dagster as dg

from emu_dagster.recording import Recorder, facts

GROUP = "curation"
CODE = ["emu_data/rubric.py", "emu_data/votes.py", "emu_data/tally.py", "emu_data/captions.py", "emu_dagster/voting.py"]


@dg.asset(**facts("generalist_selection", GROUP, {"parquet"}, ["filtered_corpus"], CODE))
def generalist_selection(context: dg.AssetExecutionContext, recorder: Recorder) -> dg.MaterializeResult:
    """Generalists drop what is of low and middling quality; tuned for recall. The paper's 20 K."""
    from emu_dagster.voting import hold_generalist_round

    with recorder.open(context) as record:
        outcome = hold_generalist_round(record.layout, record.params.generalist_selection)
        return record.result(outcome.metrics, pictures={"kept": outcome.kept, "dropped": outcome.dropped})


@dg.asset(**facts("curated_set", GROUP, {"webdataset", "parquet"}, ["generalist_selection", "filtered_corpus"], CODE))
def curated_set(context: dg.AssetExecutionContext, recorder: Recorder) -> dg.MaterializeResult:
    """Specialists keep the few that are exceptional, and each gets a written caption. The paper's 2 K."""
    from emu_dagster.voting import hold_specialist_round

    with recorder.open(context) as record:
        outcome = hold_specialist_round(record.layout, record.params.curated_set)
        return record.result(outcome.metrics, pictures={"kept": outcome.kept, "dropped": outcome.dropped})
