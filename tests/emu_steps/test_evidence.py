"""A verdict is about the current model; a check without data says what is missing and does not pass."""

import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from emu_dagster.registering import REPORTS, judge_reports
from emu_data.files import write_parquet
from emu_steps.evidence import METRICS_FILE, NoEvidence, read_evidence, write_evidence
from emu_steps.layout import Layout
from emu_steps.params import RegisteredModel
from emu_steps.verdicts import judge_verdict
from tests.profiles import NAMES, params_of, text_of

PROFILES = Path(__file__).parents[2] / "profiles"
SECTION = RegisteredModel(name="emu", min_appeal_win=0.5, max_near_copies=0.25)
NOW = {"quality_tuned": "a" * 32, "evaluation_images": "b" * 32, "faithfulness_judge": "c" * 32}
GOOD = {
    "appeal_report": {"num_prompts": 60, "num_prompts_won": 40, "num_prompts_lost": 10},
    "faithfulness_report": {
        **{"num_prompts": 60, "num_prompts_won": 2, "num_prompts_lost": 0},
        **{"num_known_pairs": 30, "num_known_wrong": 3, "num_votes": 180, "num_votes_of_people": 60},
    },
    "automatic_report": {
        **{"num_near_copies_ours": 2, "num_pictures_ours": 40},
        **{"num_near_copies_theirs": 2, "num_pictures_theirs": 40},
    },
}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A project whose reports are good and about the current models."""
    layout = Layout(tmp_path)
    for name, metrics in GOOD.items():
        layout.report(name).mkdir(parents=True)
        write_evidence(layout, name, metrics, NOW, "ours", "quality_tuned")
    return layout


def judge(layout: Layout, **now: str | None) -> dict[str, Any]:
    return judge_reports(layout, SECTION, {**NOW, **now}.get)


def change(layout: Layout, name: str, **values: Any) -> None:
    path = layout.report(name) / METRICS_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_good_reports_of_this_model_pass(layout: Layout):
    assert all(verdict.passed for verdict in judge(layout).values())
    assert set(judge(layout)) == set(REPORTS) == set(GOOD)


@pytest.mark.parametrize("asset", list(NOW))
@pytest.mark.parametrize("md5", ["f" * 32, None])
def test_reports_about_another_model_or_judge_are_no_evidence(layout: Layout, asset: str, md5: str | None):
    for verdict in judge(layout, **{asset: md5}).values():
        assert not verdict.passed and asset in verdict.reason and "materialise" in verdict.reason


@pytest.mark.parametrize("name", list(GOOD))
def test_a_missing_report_is_a_refusal_of_that_gate_alone(layout: Layout, name: str):
    shutil.rmtree(layout.report(name))
    verdicts = judge(layout)
    assert not verdicts[name].passed and f"materialise {name}" in verdicts[name].reason
    assert all(verdict.passed for other, verdict in verdicts.items() if other != name)


@pytest.mark.parametrize(
    ("name", "number"),
    # near-copies of other contestants' and of real pictures are reported for comparison and decide nothing
    [(name, number) for name, numbers in GOOD.items() for number in numbers if not number.endswith("_theirs")],
)
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "many", -1])
def test_a_value_that_is_not_a_number_does_not_pass(layout: Layout, name: str, number: str, value: Any):
    change(layout, name, **{number: value})
    assert not judge(layout)[name].passed


def test_a_report_that_does_not_say_what_it_judged_is_an_old_one(layout: Layout):
    change(layout, "appeal_report", judged={})
    with pytest.raises(NoEvidence, match="does not say which model"):
        read_evidence(layout, "appeal_report", NOW.get)
    assert not judge(layout)["appeal_report"].passed


def test_a_faithful_model_is_no_champion_with_a_judge_that_errs(layout: Layout):
    change(layout, "faithfulness_report", num_known_wrong=15)
    assert not judge_verdict(15, 30, SECTION.max_judge_error).passed
    assert not judge(layout)["faithfulness_report"].passed
    change(layout, "faithfulness_report", num_known_wrong=0, num_known_pairs=0)
    assert not judge(layout)["faithfulness_report"].passed
    change(layout, "faithfulness_report", num_votes_of_people=180)  # nobody used the judge
    assert judge(layout)["faithfulness_report"].passed


@pytest.mark.parametrize(
    "entry",
    [
        {"max_near_copies": 1.0},
        {"max_near_copies": 0.0},
        {"min_appeal_win": 0.4},
        {"min_appeal_win": 1.0},
        {"faithfulness_margin": 0.0},
        {"faithfulness_margin": 100.0},
        {"max_judge_error": 0.75},
    ],
)
def test_a_bound_that_nothing_can_miss_or_meet_is_refused(entry: dict[str, Any]):
    given: dict[str, Any] = {"name": "emu", "min_appeal_win": 0.5, "max_near_copies": 0.25}
    with pytest.raises(ValueError, match=next(iter(entry))):
        RegisteredModel(**(given | entry))


def all_checks() -> dict[str, Any]:
    from emu_dagster.defs import checks

    return {name: check for name, check in vars(checks).items() if isinstance(check, dg.AssetChecksDefinition)}


def test_every_check_without_data_fails_and_says_what_is_missing(project: Path):
    (project / "params.yaml").write_text(text_of("smoke"))
    assert len(all_checks()) >= 7
    for name, check in all_checks().items():
        result = check()
        assert not result.passed, name
        assert result.description and "materialise" in result.description, (name, result.description)


def test_raw_rows_without_their_pictures_are_noticed(project: Path):
    (project / "params.yaml").write_text(text_of("smoke"))
    raw = Layout(project).raw
    rows = pd.DataFrame({"key": ["a", "b"], "status": "success"})
    for number in range(2):
        write_parquet(raw / f"{number:05d}.parquet", rows.assign(key=rows["key"] + str(number)))
        (raw / f"{number:05d}.tar").touch()
    check = all_checks()["raw_rows_are_whole"]
    assert check().passed
    (raw / "00001.tar").unlink()
    assert "1 parquets have no .tar or .ref; the first is 00001" in check().description
    (raw / "00001.tar").touch()
    write_parquet(raw / "00001.parquet", rows.assign(key="a0"))
    assert not check().passed


def test_the_profiles_have_bounds_that_can_fail():
    for profile in NAMES:
        section = params_of(profile).registered_model
        assert section.max_near_copies <= 0.25 and section.max_judge_error <= 0.5
