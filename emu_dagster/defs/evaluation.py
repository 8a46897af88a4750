"""The proof: the contestants' pictures for the same prompts and seeds, and the judges' votes on them (Emu paper, sec.
4).
"""

from typing import Literal

import dagster as dg

from emu_dagster.declarations.declared import EVERY_REPORT, declared, makers_of_outs, reports_of
from emu_dagster.defs.rounds import hold_round, round_outs
from emu_dagster.resources.recorder import Record
from emu_steps.front_page import TRAININGS
from emu_steps.params import REGISTERED

GROUP = "evaluation"
LABELS = ["profile", "toy"]  # on every page


def judged_by(record: Record) -> dict[str, str]:
    """Return asset -> md5 for everything that an asset's result is about: all its inputs and, if it reads
    evaluation_images, what the pictures were made from.
    """
    from emu_steps.contestants import read_drawn

    drawn_by = read_drawn(record.layout).judged if "evaluation_images" in record.inputs else {}
    return record.inputs | drawn_by


def report_on(record: Record, axis: Literal["appeal", "faithfulness"]) -> dg.MaterializeResult:
    """Make the report on a round of side-by-side votes."""
    from emu_steps.judging import report_preference

    metrics, voters, plot = report_preference(record.layout, record.params, axis, judged_by(record))
    page = record.layout.report(record.key) / "index.html"
    return record.result(metrics, pictures={"win_rates": plot}, pages={"report": page}, tables={"voters": voters})


@declared(
    group=GROUP,
    kinds={"pytorch", "diffusers"},
    reads=["filtered_corpus"],
    outs=["data/evaluation_images"],
    params=["evaluation_images", "quality_tuned.resolution"],
    files=["evaluation_images.contestants", "evaluation_images.prompts_file"],
    pool="gpu",
)
def evaluation_images(record: Record) -> dg.MaterializeResult:
    """Each contestant's pictures for the fixed prompts, and for your own prompts or captions of the corpus. All models
    draw with the same seeds.
    """
    from emu_dagster.registering import find_model
    from emu_steps.contestants import Drawn
    from emu_steps.evaluating import draw_contestants

    contestants, makers = record.params.evaluation_images.contestants, makers_of_outs(record.layout)
    registered = {name: find_model(address) for name, address in contestants.items() if address.startswith(REGISTERED)}
    made_by = {name: makers.get(record.layout.root / address, address) for name, address in contestants.items()}
    drawn = Drawn(judged_by(record), made_by)
    metrics, fixed, common = draw_contestants(record.layout, record.params, drawn, registered)
    return record.result(metrics, pictures={"fixed_prompts": fixed, "common_prompts": common})


@declared(
    group=GROUP,
    kinds={"pandas"},
    reads=["evaluation_images", "curated_set", "faithfulness_judge", "filtered_corpus", "raw_corpus"],
    outs=["data/reports/automatic_report"],
    params=["automatic_report", "comparison", "quality_tuned.resolution", *LABELS],
)
def automatic_report(record: Record) -> dg.MaterializeResult:
    """What can be measured without votes: whether a judge that filtering never used recognises the subject, whether a
    picture is a copy, and how far the pictures are from the curated set.
    """
    from emu_steps.evaluating import fixed_prompts_sheet, report_automatically

    metrics, nearest = report_automatically(record.layout, record.params, judged_by(record))
    pictures = {"fixed_prompts": fixed_prompts_sheet(record.layout), "nearest_curated": nearest}
    return record.result(metrics, pictures, pages={"report": record.layout.report(record.key) / "index.html"})


@declared(
    group=GROUP,
    kinds={"parquet"},
    reads=["evaluation_images"],
    outs=round_outs("appeal"),
    params=["appeal_votes", "comparison"],
)
def appeal_votes(record: Record) -> dg.MaterializeResult:
    """Votes on which picture of a pair is more appealing, with the caption hidden: A, B or tie. The panel votes on
    pairs that no person voted on.

    Its data version is the head hash of the log. Votes are only ever appended.
    """
    from emu_steps.judging import appeal_ballots

    ballots = appeal_ballots(record.layout, record.params.appeal_votes, record.params.comparison)
    return hold_round(record, "appeal", ballots)


@declared(
    group=GROUP,
    kinds={"pandas"},
    reads=["evaluation_images", "appeal_votes"],
    outs=["data/reports/appeal_report"],
    params=["appeal_report", "appeal_votes.voters", "comparison", *LABELS],
)
def appeal_report(record: Record) -> dg.MaterializeResult:
    """Whose pictures are more appealing: win rates of the votes, with intervals over prompts."""
    return report_on(record, "appeal")


@declared(
    group=GROUP,
    kinds={"parquet"},
    reads=["evaluation_images", "faithfulness_judge", "filtered_corpus"],
    outs=round_outs("faithfulness"),
    params=["faithfulness_votes", "comparison"],
)
def faithfulness_votes(record: Record) -> dg.MaterializeResult:
    """Votes on which picture of a pair shows what its caption says: A, B, both or neither. Otherwise like
    appeal_votes.
    """
    from emu_steps.judging import faithfulness_ballots

    ballots = faithfulness_ballots(record.layout, record.params.faithfulness_votes, record.params.comparison)
    return hold_round(record, "faithfulness", ballots)


@declared(
    group=GROUP,
    kinds={"pandas"},
    reads=["evaluation_images", "faithfulness_votes", "faithfulness_judge"],
    outs=["data/reports/faithfulness_report"],
    params=["faithfulness_report", "faithfulness_votes.voters", "comparison", *LABELS],
)
def faithfulness_report(record: Record) -> dg.MaterializeResult:
    """Whose pictures show what their captions say: win rates of the votes, with intervals over prompts."""
    return report_on(record, "faithfulness")


@declared(
    group=GROUP,
    kinds={"jinja"},
    reads=[EVERY_REPORT, *TRAININGS, "generalist_selection", "curated_set", "registered_model"],
    outs=["data/reports/index.html", "data/reports/front_page", "data/reports/training"],
    params=LABELS,
)
def front_page(record: Record) -> dg.MaterializeResult:
    """The first page of the reports, data/reports/index.html: before and after, verdicts, the funnel, the trainings.

    Its numbers are read from the files that the assets wrote. Its pictures are copies, so they always match its
    numbers.
    """
    from emu_steps.front_page import write_front_page

    layout = record.layout
    reports = reports_of(layout.readable or frozenset())
    sizes = write_front_page(layout, record.params, reports, record.inputs)
    pages = {"front_page": layout.index, "trainings": layout.training_report / "index.html"}
    return record.result(sizes, pages=pages)
