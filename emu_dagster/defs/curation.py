"""The needles: two rounds of votes, and the pictures that they chose (Emu paper, sec. 3.3, items 5 to 7).

A round is an input: people's votes may be added to its log at any time. A rubric panel votes on pictures that no person
voted on, and each of its votes is labelled as such. Assets that read a round write no votes.
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
    """Generalists' votes on the filtered pictures: keep or drop. By default the panel votes on pictures that no person
    voted on.

    Its data version is the head hash of the log. Votes are only ever appended.
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
    params=["generalist_selection", "generalist_votes.voters"],
)
def generalist_selection(record: Record) -> dg.MaterializeResult:
    """The pictures that at least one generalist kept, for recall: pictures of low and medium quality are gone. The
    paper's 20 K.
    """
    from emu_steps.choosing import select_generalists_choice, sheets

    params = record.params
    voters = params.generalist_votes.voters
    choice = select_generalists_choice(record.layout, params.generalist_selection.num_images, voters)
    return record.result(choice.metrics, pictures=sheets(record.layout, choice), tables=choice.tables)


@declared(
    group=GROUP,
    kinds={"parquet"},
    reads=["filtered_corpus", "generalist_selection"],
    outs=round_outs("specialist"),
    params=["specialist_votes", "curated_set.num_images"],
)
def specialist_votes(record: Record) -> dg.MaterializeResult:
    """Specialists' votes on the pictures that the generalists chose; otherwise like generalist_votes."""
    from emu_steps.voting import specialist_ballots

    params = record.params
    ballots = specialist_ballots(record.layout, params.specialist_votes, params.curated_set.num_images)
    return hold_round(record, "specialist", ballots)


@declared(
    group=GROUP,
    kinds={"parquet"},
    outs=["data/votes/captions/captions.parquet", "data/votes/captions/captions.jsonl"],
)
def written_captions(record: Record) -> dg.MaterializeResult:
    """The captions that people wrote in the studio, short and long; none as long as nobody did. Every version is kept.

    Its data version is the SHA-256 of the file that captions are added to.
    """
    from emu_steps.captioning import recorded_captions

    with recorded_captions(record.layout) as found:
        return record.result(found.metrics, data_version=found.version)


@declared(
    group=GROUP,
    kinds={"webdataset", "parquet"},
    reads=["filtered_corpus", "generalist_selection", "specialist_votes", "written_captions"],
    outs=["data/curated"],
    params=["curated_set", "specialist_votes.voters"],
    files=["curated_set.upsampler"],
)
def curated_set(record: Record) -> dg.MaterializeResult:
    """The few pictures that most specialists kept as exceptional, with the captions that people wrote, or else the
    corpus's. The paper's 2 K."""
    from emu_steps.choosing import sheets, write_curated_set

    params = record.params
    layout, section, voters = record.layout, params.curated_set, params.specialist_votes.voters
    upsampler = layout.root / section.upsampler if section.upsampler else None
    choice = write_curated_set(layout, section.num_images, voters, section.upsample_to, upsampler)
    return record.result(choice.metrics, pictures=sheets(record.layout, choice), tables=choice.tables)
