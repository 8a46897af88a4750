"""The proof: pictures of both models for the same prompts and seeds, and what judges say (Emu paper, sec. 4)."""

import json
from typing import Literal

import dagster as dg

from emu_dagster.declaring import declared
from emu_dagster.recording import Record
from emu_steps.front_page import REPORTS, TRAININGS

GROUP = "evaluation"
LABELS = ["profile", "toy"]  # on every page


def judged_by(record: Record) -> dict[str, str]:
    """asset -> md5 of what an asset's result is about: all that it reads, and, of evaluation_images, what drew them."""
    from emu_steps.evaluating import JUDGED_FILE

    found = record.inputs
    if "evaluation_images" in found:
        found |= json.loads((record.layout.evaluation / JUDGED_FILE).read_text())
    return found


def report_on(record: Record, axis: Literal["appeal", "faithfulness"]) -> dg.MaterializeResult:
    """The report on a round of side-by-side votes."""
    from emu_steps.judging import report_preference

    metrics, voters, plot = report_preference(record.layout, record.params, axis, judged_by(record))
    page = record.layout.report(record.key) / "index.html"
    return record.result(metrics, pictures={"win_rates": plot}, pages={"report": page}, tables={"voters": voters})


@declared(
    group=GROUP,
    kinds={"pytorch", "diffusers"},
    reads=["quality_tuned", "filtered_corpus"],
    params=["evaluation_images", "quality_tuned.start_from", "quality_tuned.resolution"],
    files=["quality_tuned.start_from"],
    pool="gpu",
)
def evaluation_images(record: Record) -> dg.MaterializeResult:
    """Pictures from the model before and after tuning: the 16 fixed prompts and the names of the subjects."""
    from emu_steps.evaluating import generate_pairs

    metrics, fixed, common = generate_pairs(record.layout, record.params, judged_by(record))
    return record.result(metrics, pictures={"fixed_prompts": fixed, "common_prompts": common})


@declared(
    group=GROUP,
    kinds={"pandas"},
    reads=["evaluation_images", "curated_set", "faithfulness_judge", "filtered_corpus", "raw_corpus"],
    params=["automatic_report", "quality_tuned.resolution", *LABELS],
)
def automatic_report(record: Record) -> dg.MaterializeResult:
    """What can be measured without a voter: does a held-out judge name the subject, is it a copy, how far from real."""
    from emu_steps.evaluating import fixed_prompts_sheet, report_automatically

    metrics, nearest = report_automatically(record.layout, record.params, judged_by(record))
    pictures = {"fixed_prompts": fixed_prompts_sheet(record.layout), "nearest_curated": nearest}
    return record.result(metrics, pictures, pages={"report": record.layout.report(record.key) / "index.html"})


@declared(group=GROUP, kinds={"parquet"}, reads=["evaluation_images"], params=["appeal_votes"])
def appeal_votes(record: Record) -> dg.MaterializeResult:
    """Which picture of a pair is more appealing, caption hidden: A / B / tie; the panel votes where no person did.

    Its data version is the head hash of the log, which nothing replaces.
    """
    from emu_dagster.rounds import hold_round
    from emu_steps.judging import appeal_ballots

    ballots = appeal_ballots(record.layout, record.params.appeal_votes)
    return hold_round(record, "appeal", ballots)


@declared(
    group=GROUP,
    kinds={"pandas"},
    reads=["evaluation_images", "appeal_votes"],
    params=["appeal_report", *LABELS],
)
def appeal_report(record: Record) -> dg.MaterializeResult:
    """Which model's pictures are more appealing: win rates of the votes, with intervals over prompts."""
    return report_on(record, "appeal")


@declared(
    group=GROUP,
    kinds={"parquet"},
    reads=["evaluation_images", "faithfulness_judge", "filtered_corpus"],
    params=["faithfulness_votes"],
)
def faithfulness_votes(record: Record) -> dg.MaterializeResult:
    """Which picture of a pair shows what its caption says: A / B / both / neither; as appeal_votes."""
    from emu_dagster.rounds import hold_round
    from emu_steps.judging import faithfulness_ballots

    ballots = faithfulness_ballots(record.layout, record.params.faithfulness_votes)
    return hold_round(record, "faithfulness", ballots)


@declared(
    group=GROUP,
    kinds={"pandas"},
    reads=["evaluation_images", "faithfulness_votes", "faithfulness_judge"],
    params=["faithfulness_report", *LABELS],
)
def faithfulness_report(record: Record) -> dg.MaterializeResult:
    """Which model's pictures show what their captions say: win rates of the votes, with intervals over prompts."""
    return report_on(record, "faithfulness")


@declared(
    group=GROUP,
    kinds={"jinja"},
    reads=[*REPORTS, *TRAININGS, "generalist_selection", "curated_set", "registered_model"],
    params=LABELS,
)
def front_page(record: Record) -> dg.MaterializeResult:
    """The first page of the reports, data/reports/index.html: before and after, verdicts, the funnel, the trainings.

    Its numbers are those of the files that the assets wrote, and its pictures are copies beside it: they stay together.
    """
    from emu_steps.front_page import write_front_page

    sizes = write_front_page(record.layout, record.params, record.inputs)
    index, _, training = record.layout.outs(record.key)
    return record.result(sizes, pages={"front_page": index, "trainings": training / "index.html"})
