"""`emu funnel` decides again under other thresholds, writes no ledger, and says what that means in one line."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu_data.corpus_gates import final_ledger
from emu_data.ledger import LIMITS, decide, open_ledger, write_ledger
from emu_data.samples import Sample
from emu_data.shards import write_shard
from emu_data.sources.damage import encode_png
from emu_steps.filtering import corpus_policy
from emu_steps.layout import Layout
from emu_steps.params import Policy, read_params
from emu_steps.redeciding import estimate_unmeasured, parse_changes, show_funnel
from tests.profiles import params_of, text_of
from tests.shards import toy_values

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A finished ledger of 60 rows under the smoke profile's policy, with its shards; text was measured for a part of
    them."""
    layout = Layout(tmp_path_factory.mktemp("project"))
    params_text = text_of("smoke")
    for old, new in (
        ("max_read_text_area: 0.05", "max_read_text_area: null"),
        ("max_text_area: null", "max_text_area: 0.05"),
    ):
        assert old in params_text
        params_text = params_text.replace(old, new)
    (layout.root / "params.yaml").write_text(params_text)
    params = read_params(layout.root / "params.yaml")
    keys = [f"0000{i // 30}{i % 30:04d}" for i in range(60)]
    values = toy_values(
        keys,
        min_side=[16] * 12 + [128] * 48,
        text_area=np.linspace(0, 0.1, 60),
        concept=[f"concept {i % 6}" for i in range(60)],
        unmeasured=["text_area"] * 8 + [""] * 52,
    )
    values.loc[:7, "text_area"] = np.nan
    values.loc[59, ["status", "error_message"]] = ["failed_to_download", "HTTP Error 404"]
    values.loc[20, "looks"] = str(values.loc[21, "looks"])
    text = ["key", "shard", "caption", "status", "error_message", "error", "unmeasured", "concept"]
    values = values.astype({**dict.fromkeys(text, "string"), "text_area": "Float64"})
    write_ledger(layout.ledger, decide(values, params.filter_ledger.policy.model_dump()))
    section = params.filtered_corpus.model_copy(update={"num_images": 12, "max_concept_share": 1.0})
    final_ledger(layout.ledger, layout.filtered / "ledger", corpus_policy(section))
    lines = (
        (layout.root / "params.yaml")
        .read_text()
        .replace("  num_images: 40\n  min_twin", "  num_images: 12\n  min_twin")
    )
    (layout.root / "params.yaml").write_text(lines)
    picture = encode_png(Image.new("RGB", (32, 32), "red"))
    for shard, rows in values.groupby("shard"):
        good = rows[rows["status"] == "success"]
        samples = [Sample(key, picture, text) for key, text in zip(good["key"], good["caption"], strict=True)]
        write_shard(layout.raw, int(str(shard)), samples, rows[["key", "status", "caption", "url"]])
    return layout


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.parquet"))}


def test_before_and_after_are_shown_and_no_ledger_is_written(
    project: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    params = read_params(project.root / "params.yaml")
    before = digest(project.data)
    show_funnel(project, params, [], "readable")
    plain = capsys.readouterr().out
    assert "HTTP Error 404" in plain and "thing [59]" in plain and "change" not in plain
    show_funnel(project, params, ["text_area=0.04", "num_images=5"], "duplicate")
    out = capsys.readouterr().out
    assert "max_text_area: 0.04" in out and "num_images: 5" in out and "line " in out
    assert "000000021" in out  # one of the twins, the larger key
    page = (project.report("funnel") / "index.html").read_text()
    assert "Before and after" in page and "max_text_area" in page
    assert digest(project.data) == before


def test_every_threshold_of_params_has_a_limit_and_vice_versa() -> None:
    assert set(Policy.model_fields) == {limit.field for limit in LIMITS}


def test_rows_that_were_not_measured_are_counted_and_estimated(
    project: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """A smaller side lets 12 rows pass geometry: 8 without a text area, 4 of the control sample with one."""
    show_funnel(project, read_params(project.root / "params.yaml"), ["min_side=8"])
    assert "8 rows must be measured first" in capsys.readouterr().out
    others = {"max_aspect": 3.0, "min_words": 1, "min_characters": 3, "max_unsafe": 0.5, "min_alignment_rank": 0.5}
    with open_ledger(project.filtered / "ledger") as con:
        all_pass = estimate_unmeasured(con, {**others, "min_side": 8, "max_text_area": 1.0})
        none_pass = estimate_unmeasured(con, {**others, "min_side": 8, "max_text_area": 0.0})
    assert all_pass.num_control == none_pass.num_control == 4
    assert all_pass.low < 8 * 0.9 < all_pass.high <= 8 and all_pass.expected == pytest.approx(8 * 4.5 / 5, abs=0.1)
    assert none_pass.low >= 0 and none_pass.expected == pytest.approx(8 * 0.5 / 5, abs=0.1)


def test_short_names_are_accepted_if_they_are_unambiguous() -> None:
    params = params_of("smoke")
    texts = ["text_area=0.03", "unsafe=null", "min_side=512", "duplicate=0.9", "order_by=likes", "alignment_rank=0.2"]
    policy, section, changes = parse_changes(params, texts)
    assert (policy["max_text_area"], policy["max_unsafe"], policy["min_side"], policy["min_alignment_rank"]) == (
        0.03,
        None,
        512,
        0.2,
    )
    assert (section.min_twin_similarity, section.order_by) == (0.9, "likes")
    assert [change.name for change in changes][:2] == ["max_text_area", "max_unsafe"]


@pytest.mark.parametrize(
    "text, reported",
    [
        ("geometry=3", "max_aspect or min_side"),
        ("taste=1", "there is no such threshold"),
        ("text_area", "NAME=VALUE"),
        ("text_area=much", "a number"),
        ("text_area=.nan", "a number"),
        ("text_area=2", "less than or equal to 1"),
        ("duplicate=9", "less than or equal to 1"),
        ("concepts={}", "no such threshold"),
    ],
)
def test_values_that_do_not_fit_are_reported(text: str, reported: str) -> None:
    with pytest.raises(ValueError, match=reported) as caught:
        parse_changes(params_of("smoke"), [text])
    assert "\n" not in str(caught.value)


def test_an_unknown_gate_and_a_missing_ledger_are_reported(project: Layout, tmp_path: Path) -> None:
    params = read_params(project.root / "params.yaml")
    with pytest.raises(ValueError, match="there is no gate 'taste'"):
        show_funnel(project, params, [], "taste")
    with pytest.raises(ValueError, match="holds no ledger"):
        show_funnel(Layout(tmp_path), params, [])
