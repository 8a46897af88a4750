"""The needles: two rounds of votes, what they chose, and a written caption each (Emu paper, sec. 3.3, items 5 to 7).

A round is an input: people's votes come to its log at any time, and where no person voted a rubric panel does, labelled
as such in every vote. What reads a round writes no votes.
"""

import dagster as dg

from emu_dagster.declarations.declared import declared
from emu_dagster.defs.rounds import hold_round, round_outs
from emu_dagster.resources.recorder import Record

GROUP = "curation"


@declared(
    group=GROUP,
    kinds={"parquet"},
    reads=["filtered_corpus"],
    outs=round_outs("generalist"),
    params=["generalist_votes", "generalist_selection.num_images"],
)
def generalist_votes(record: Record) -> dg.MaterializeResult:
    """What generalists say of the filtered pictures, keep or drop; the panel's votes are appended where nobody voted.

    Its data version is the head hash of the log, which nothing replaces.
    """
    from emu_steps.voting import generalist_ballots

    params = record.params
    ballots = generalist_ballots(record.layout, params.generalist_votes, params.generalist_selection.num_images)
    return hold_round(record, "generalist", ballots)


@declared(
    group=GROUP,
    kinds={"parquet"},
    reads=["filtered_corpus", "generalist_votes"],
    outs=["data/curation/generalist_selection"],
    params=["generalist_selection"],
)
def generalist_selection(record: Record) -> dg.MaterializeResult:
    """What a generalist kept: all of low and middling quality is gone; tuned for recall. The paper's 20 K."""
    from emu_steps.choosing import select_generalists_choice, sheets

    choice = select_generalists_choice(record.layout, record.params.generalist_selection.num_images)
    return record.result(choice.metrics, pictures=sheets(record.layout, choice), tables=choice.tables)


@declared(
    group=GROUP,
    kinds={"parquet"},
    reads=["filtered_corpus", "generalist_selection"],
    outs=round_outs("specialist"),
    params=["specialist_votes", "curated_set.num_images"],
)
def specialist_votes(record: Record) -> dg.MaterializeResult:
    """What specialists say of the generalists' choice; as generalist_votes."""
    from emu_steps.voting import specialist_ballots

    params = record.params
    ballots = specialist_ballots(record.layout, params.specialist_votes, params.curated_set.num_images)
    return hold_round(record, "specialist", ballots)


@declared(
    group=GROUP,
    kinds={"webdataset", "parquet"},
    reads=["filtered_corpus", "generalist_selection", "specialist_votes"],
    outs=["data/curated"],
    params=["curated_set"],
)
def curated_set(record: Record) -> dg.MaterializeResult:
    """The few that most specialists kept as exceptional, each with a written caption. The paper's 2 K."""
    from emu_steps.choosing import sheets, write_curated_set

    choice = write_curated_set(record.layout, record.params.curated_set.num_images)
    return record.result(choice.metrics, pictures=sheets(record.layout, choice), tables=choice.tables)
