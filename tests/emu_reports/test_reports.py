import base64
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import ChoiceLoader, DictLoader
from PIL import Image

from emu_dagster.declarations.declared import reports_of
from emu_dagster.declarations.loading import load_declarations
from emu_data.formatting import format_share, format_significant
from emu_data.gate_quality import Auc
from emu_data.survey import Effect, Family, Precision
from emu_data.votes.agreement import measure_agreement
from emu_data.votes.intervals import Interval, exact_rate
from emu_data.votes.preference import position_bias, self_consistency, summarise_preference
from emu_data.votes.vote import Vote, describe_voters, votes_to_frame
from emu_models.evaluation.faithfulness import Naming
from emu_models.evaluation.reconstruction import Difference, Reconstruction
from emu_reports import page as page_module
from emu_reports.autoencoder import Step, VariantFindings, find_detail, write_autoencoder_report
from emu_reports.corpus import CorpusFindings, write_corpus_report
from emu_reports.evaluation import AutomaticFindings, WantedKind, save_pairs, write_automatic_report
from emu_reports.funnel import Findings, write_funnel_report
from emu_reports.held_out import HeldOut, read_held_out
from emu_reports.index import write_index
from emu_reports.page import Run, to_json
from emu_reports.preference import Axis, picture_preference, write_preference_report
from emu_reports.standalone import standalone
from emu_reports.studies import Arm, Outcome, find_trade_off, write_generality_report, write_tuning_report
from emu_reports.training import FinishedTraining, read_finished_training, write_training_report

REPORTS = reports_of(load_declarations())

HOME = Path(page_module.__file__).parent
NUM_PROMPTS = 20
REGISTERED = {
    "name": "emu",
    "version": 3,
    "alias": "challenger",
    "verdicts": {
        "appeal_report": {"passed": True, "reason": "appeal: it wins"},
        "automatic_report": {"passed": False, "reason": "near-copies: <b>9 of 10</b>"},
    },
}
JUDGE_ERROR = {
    "num_pairs": 30,
    "num_wrong": 3,
    "error": {"estimate": 10.0, "low": 2.1, "high": 26.5},
    "by_right": {"A": (14, 15), "neither": (13, 15)},
}
EVIL = "<script>alert('\"&')</script>"


MADE_FROM = {"raw_corpus": "ab" * 16 + ".dir", "quality_tuned": "cd" * 16}


def make_run(toy: bool = True, profile: str = "test") -> Run:
    return Run(profile, toy, MADE_FROM)


def make_pictures(num: int, seed: int = 0, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), dtype=np.uint8)


PROMPTS = pd.DataFrame(
    {
        "key": [f"{n:04d}" for n in range(NUM_PROMPTS)],
        "prompt": [EVIL, *(f"a subject {n}" for n in range(1, NUM_PROMPTS))],
        "fixed": [n < 16 for n in range(NUM_PROMPTS)],
    }
)


def write_corpus(folder: Path, run: Run) -> dict[str, Any]:
    nothing = Interval(float("nan"), float("nan"), float("nan"))
    edges, counts = [float(i) for i in range(41)], [i % 7 for i in range(40)]
    rows = (500, True, 900, 1000)  # shown, whether it is in the control sample, measured, readable
    effects = [
        Effect(
            "geometry", "min_side", "min_side", True, 64, edges, counts, Interval(2.5, 1.0, 4.0), *rows, ["a/b"], []
        ),
        Effect("caption", "num_words", "min_words", True, None, edges, counts, nothing, *rows, [], ["key", "gone"]),
    ]
    families = [Family("subject", "fish", "alignment", Interval(70.0, 60.0, 80.0), 24, 20.0, True)]
    precision = [Precision("geometry", Interval(90.0, 60.0, 99.0), 10)]
    to_label = pd.DataFrame({"gate": ["geometry"], "key": ["a/b"], "caption": ["<b>a thing</b>"]})
    images = {key: np.zeros((128, 128, 3), np.uint8) for key in ("a/b", "key")}
    captions = {"a/b": "<b>a thing</b>", "key": "another"}
    findings = CorpusFindings(1234, effects, families, precision, to_label, images, captions)
    return write_corpus_report(folder, findings, run)


def write_funnel(folder: Path, run: Run, **options: Any) -> dict[str, Any]:
    nan = float("nan")
    quality = pd.DataFrame(
        [
            ("text_area", 110, 100, 95, 0.95, 0.86, 0.88, 0.78, 0.09, False),
            ("alignment", 90, 0, 0, nan, 0.0, 0.0, 0.0, nan, False),
            ("duplicate", 10, 10, 10, 1.0, 1.0, 0.69, 0.69, 0.0, False),
            ("readable", 0, 0, 0, nan, nan, 0.0, 0.0, nan, False),
        ],
        columns=[
            "gate",
            "num_damaged",
            "num_dropped",
            "num_right",
            "precision",
            "recall",
            "precision_low",
            "recall_low",
            "missed_by",
            "is_shown",
        ],
    )
    findings = Findings(
        counts={"readable": 34, "text_area": 100, "alignment": 100, "": 1000},
        reasons=[("HTTP Error 404 " + EVIL, 30), ("corrupt", 4)],
        examples={gate: [(one, EVIL) for one in make_pictures(3)] for gate in ("text_area", "alignment")},
        quality=quality,
        alignment_auc=Auc(0.87, 0.6, 0.95, 4, 100),
        cascade=[{"signal": "geometry", "milliseconds": 0.123456, "pass_rate": 0.9}, {"signal": "text_area"}],
        sources={"safety": "the corpus's own column punsafe"},
    )
    entropy = {"concept_entropy_before_bits": 2.0, "concept_entropy_after_bits": 2.5}
    return write_funnel_report(folder, findings, entropy, run, **options)


def write_autoencoder(folder: Path, run: Run) -> dict[str, Any]:
    interval = Interval(0.5, 0.4, 0.6)
    found = Reconstruction(8, interval, Interval(25.0, 24.0, 26.0), interval, "some features (not FID)")
    variants = [
        VariantFindings("c4", 4, 0, found, make_pictures(8, 1), 1000),
        VariantFindings("c16_fourier", 16, 2, found, make_pictures(8, 2)),
        VariantFindings("c12", 12, 0, found, make_pictures(8, 3)),
    ]
    steps = [Step("c4", "c12", Difference(interval, Interval(1.25, -0.5, 3.0), interval))]
    return write_autoencoder_report(folder, variants, steps, make_pictures(8), run, "It holds.")


def write_training(folder: Path, run: Run) -> dict[str, Any]:
    curves = pd.DataFrame({"step": [10, 20, 30], "loss": [1.0, 0.5, 0.4], "val_loss": [1.1, 0.6, float("nan")]})
    trainings = [
        FinishedTraining(
            name,
            f"Stage {name}",
            64,
            500,
            1_000_000,
            HeldOut(30, 0.9, 20, 0.6) if name == "tuned" else HeldOut(30, 0.5, 30, 0.5),
            name == "tuned",
            curves,
            0.1 if name == "tuned" else None,
            Image.fromarray(make_pictures(1)[0]) if name == "tuned" else None,
        )
        for name in ("full", "tuned")
    ]
    return write_training_report(folder, trainings, run)


def write_automatic(folder: Path, run: Run) -> dict[str, Any]:
    rate = Naming(20, 40, Interval(40, 30, 50), Interval(70, 60, 80), 12.5)
    nearest = pd.DataFrame(
        {
            "nearest_key": "t1",
            "similarity": 0.5,
            "nearest_pixel_key": [f"t{n % 5}" for n in range(NUM_PROMPTS)],
            "pixel_distance": np.linspace(0.3, 0.1, NUM_PROMPTS),
        }
    )
    findings = AutomaticFindings(
        candidate="ours",
        judge="judge",
        judge_error=JUDGE_ERROR,
        naming={"real": rate, "theirs": rate, "ours": rate},
        num_named=NUM_PROMPTS,
        nearest={"theirs": nearest, "ours": nearest},
        copies={"theirs": exact_rate(0, 20), "ours": exact_rate(1, 20), "real": exact_rate(2, 60)},
        among=pd.DataFrame({"similarity": [0.4, 0.5], "pixel_distance": [0.2, 0.3]}),
        frechet={"theirs": 2.0, "ours": 1.0},
        frechet_features="the judge's embeddings",
        wanted=WantedKind(
            "shaded <b>drawings",
            {"theirs": Interval(30.0, 20.0, 40.0), "ours": Interval(60.0, 50.0, 70.0)},
            Interval(30.0, 10.0, 50.0),
            *(90, 100),
            Interval(90.0, 80.0, 95.0),
            Interval(70.0, 60.0, 80.0),
        ),
    )
    pictures = {"theirs": make_pictures(NUM_PROMPTS), "ours": make_pictures(NUM_PROMPTS, 1)}
    return write_automatic_report(
        folder, findings, PROMPTS, pictures, [f"t{n}" for n in range(5)], make_pictures(5), run
    )


def write_preference(folder: Path, run: Run, axis: Axis, kind: Any = "rubric") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    choices = ["A", "B", "tie"] if axis == "appeal" else ["A", "B", "both", "neither"]
    votes = [
        Vote(axis, f"r{n}", kind, key, str(rng.choice(choices)), side_order=str(rng.choice(["AB", "BA"])))
        for key in PROMPTS["key"]
        for n in range(3)
    ]
    table = votes_to_frame(votes)
    return write_preference_report(
        folder,
        axis,
        summarise_preference(table),
        votes,
        describe_voters(votes),
        PROMPTS,
        ("ours", "theirs"),
        (make_pictures(NUM_PROMPTS, 1), make_pictures(NUM_PROMPTS)),
        measure_agreement(votes),
        position_bias(table),
        self_consistency(table, table.head(0)),
        "ab" * 32,
        run,
        JUDGE_ERROR if axis == "faithfulness" else None,
    )


def make_outcome(name: str, axis: Axis = "appeal") -> Outcome:
    rng = np.random.default_rng(len(name))
    votes = [
        Vote(axis, f"r{n}", "rubric", key, str(rng.choice(["A", "B", "tie"])), side_order="AB")
        for key in PROMPTS["key"]
        for n in range(3)
    ]
    preference, rate = summarise_preference(votes_to_frame(votes)), exact_rate(1, 20)
    away = Interval(0.5, 0.4, 0.6)
    faithfulness = None if name == "strange" else preference
    return Outcome(name, 38, preference, faithfulness, rate, rate, away, away, "better <b>")


def write_generality(folder: Path, run: Run, *names: str) -> dict[str, Any]:
    sheet = Image.fromarray(make_pictures(1)[0])
    return write_generality_report(folder, [make_outcome(name) for name in names], [EVIL], sheet, run)


def write_tunings(folder: Path, run: Run, *parts: str) -> dict[str, Any]:
    arms = [Arm(part, share, "epochs", 50, 0, make_outcome(f"{part}{share}")) for part in parts for share in (0.5, 1)]
    return write_tuning_report(folder, arms, [EVIL], Image.fromarray(make_pictures(1)[0]), run)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All reports and the index of a toy run."""
    reports = tmp_path_factory.mktemp("data") / "reports"
    write_corpus(reports / "corpus_report", make_run())
    write_funnel(reports / "filtered_corpus", make_run())
    write_autoencoder(reports / "autoencoder_study", make_run())
    write_training(reports / "training", make_run())
    write_automatic(reports / "automatic_report", make_run())
    write_generality(reports / "generality_report", make_run(), "flow", "strange")
    write_tunings(reports / "tuning_study", make_run(), "share", "length", "chosen_by", "captions")
    write_preference(reports / "appeal_report", make_run(), "appeal")
    write_preference(reports / "faithfulness_report", make_run(), "faithfulness")
    sizes = {"raw": 1234, "filtered": 1000, "generalists": 100, "curated": 40}
    write_front(reports, make_run(), sizes, REGISTERED, [("make up", "shows pages")])
    yield reports


def write_front(reports: Path, *arguments: Any) -> None:
    """Write the index with all reports that are in `reports`."""
    folders = [*(reports / name for name in REPORTS), reports / "training"]
    write_index(reports / "index.html", reports / "front_page", folders, *arguments)


class Links(HTMLParser):
    """Collects what a page refers to, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href") and tag != "use"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_page_is_complete_and_needs_nothing_from_elsewhere(reports: Path):
    pages = sorted(reports.rglob("index.html"))
    assert len(pages) == 10
    for one in pages:
        html = one.read_text(encoding="utf-8")
        found = Links(html)
        assert "script" not in found.tags and "link" not in found.tags
        assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//|url\((?!#)|@import", html), one
        targets = [link for link in found.links if not link.startswith("#")]
        assert targets and all((one.parent / link).is_file() for link in targets), one
        assert "prefers-color-scheme: dark" in html and "width=device-width" in html
        assert "None" not in found.text and "nan" not in found.text.lower().split()


def test_a_caption_is_shown_as_text_and_not_as_markup(reports: Path):
    for name in ("filtered_corpus", "automatic_report", "appeal_report"):
        found = Links((reports / name / "index.html").read_text(encoding="utf-8"))
        assert EVIL in found.text and "script" not in found.tags


def test_report_json_is_strict_json_and_says_what_the_page_says(reports: Path):
    for path in reports.glob("*/report.json"):

        def refuse(constant: str) -> None:
            raise AssertionError(constant)

        data = json.loads(path.read_text(), parse_constant=refuse)
        assert data["profile"] == "test" and data["labels"][0] == "toy scale"
    funnel = json.loads((reports / "filtered_corpus" / "report.json").read_text())
    by_gate = {gate["gate"]: gate for gate in funnel["gates"]}
    assert by_gate["alignment"]["quality"]["precision"] is None and funnel["num_kept"] == 1000
    assert funnel["num_raw"] == 1234 and "unmeasured" not in by_gate


def test_the_funnel_says_by_how_much_a_goal_is_missed_and_how_that_was_measured(tmp_path: Path, reports: Path):
    text = Links((reports / "filtered_corpus" / "index.html").read_text(encoding="utf-8")).text
    for described in ("goal 0.90, missed by 0.030", "0.090", "met", "corrupt", "pass rate", "0.123", "column punsafe"):
        assert described in text, described
    assert "Before and after" not in text
    data = write_funnel(
        tmp_path, make_run(), before={"": 1100, "text_area": 0, "readable": 134}, changes=["max_text_area 1 -> 0.03"]
    )
    assert data["num_kept_before"] == 1100
    assert not list(tmp_path.glob("cards/*"))  # so that the index still shows the funnel that was written
    text = Links((tmp_path / "index.html").read_text(encoding="utf-8")).text
    assert "max_text_area 1 -> 0.03" in text and "The ledger keeps 1\u202f100" in text and "−100" in text


def test_toy_scale_and_the_panel_are_labelled_where_they_apply(tmp_path: Path, reports: Path):
    index = (reports / "index.html").read_text(encoding="utf-8")
    panel = "60 votes of the rubric panel, not people"
    assert "toy scale" in index and panel in index
    appeal = (reports / "appeal_report" / "index.html").read_text(encoding="utf-8")
    assert panel in appeal and "0 of 60 votes are by people" in appeal and "abab" in appeal
    assert "not people" not in (reports / "training" / "index.html").read_text(encoding="utf-8")
    by_people = write_preference(tmp_path / "appeal_report", make_run(toy=False), "appeal", kind="person")
    assert by_people["labels"] == ["60 votes of 3 people"] and by_people["num_votes_of_people"] == 60
    write_front(tmp_path, make_run(toy=False), {})
    for path in tmp_path.rglob("index.html"):
        html = path.read_text(encoding="utf-8")
        assert "60 votes of 3 people" in html
        assert "toy" not in html.split("</style>")[1] and "rubric panel" not in html and "not people" not in html


def test_the_papers_figures_are_beside_ours_and_marked_as_such(reports: Path):
    index = Links((reports / "index.html").read_text(encoding="utf-8")).text
    for figure in ("82.9", "15.4", "91.2", "36.7", "47.9", "28.64", "34.19", "200 000"):
        assert figure in index
    assert "ours (toy)" in index and "paper, PartiPrompts" in index
    assert "not checked against the paper" in index and "not the paper’s FID" in index


def test_the_index_shows_sixteen_pairs_first_and_says_what_is_missing(tmp_path: Path, reports: Path):
    html = (reports / "index.html").read_text(encoding="utf-8")
    pairs = re.findall(r'src="front_page/automatic_report-pictures-(\d+)-(theirs|ours)\.png"', html)
    assert [model for _, model in pairs] == ["theirs", "ours"] * 16
    assert html.index("front_page/automatic_report") < html.index("Which is more appealing")
    write_training(tmp_path / "training", make_run())
    write_front(tmp_path, make_run(), {"raw": 5})
    text = Links((tmp_path / "index.html").read_text(encoding="utf-8")).text
    assert f"Not made yet: {', '.join(REPORTS)}." in text
    old = json.loads((tmp_path / "training" / "report.json").read_text()) | {"schema": 0, "trainings": [{}]}
    (tmp_path / "training" / "report.json").write_text(json.dumps(old))
    write_front(tmp_path, make_run(), {"raw": 5})
    assert f"{REPORTS[-1]}, training." in (tmp_path / "index.html").read_text()
    write_front(tmp_path / "empty", make_run(), {})
    assert (tmp_path / "empty" / "index.html").is_file()


def test_a_new_report_is_on_the_index_where_its_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With only its own templates: the index knows no report by name."""
    new = {
        "speed.html.j2": "{% extends 'base.html.j2' %}{% block main %}{{ seconds }} s{% endblock %}",
        "card_speed.html.j2": '<h2>{{ words }}: {{ seconds }} s</h2><a href="{{ folder }}/index.html">all</a>'
        '<img src="{{ folder }}/fast.png">',
    }
    environment = page_module._environment()
    assert environment.loader
    monkeypatch.setattr(environment, "loader", ChoiceLoader([DictLoader(new), environment.loader]))
    write_training(tmp_path / "training", make_run())
    write_preference(tmp_path / "appeal_report", make_run(), "appeal")
    data = {**page_module.describe_run(make_run(), "by a stopwatch"), "seconds": 1.5, "words": EVIL}
    pictures = {"fast": make_pictures(1)[0]}
    page_module.write_report(tmp_path / "speed_report", "speed", data, pictures, cards=[page_module.Card("speed", 25)])
    folders = [tmp_path / name for name in ("training", "speed_report", "appeal_report")]
    write_index(tmp_path / "index.html", tmp_path / "front_page", folders, make_run(), {})
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    found = Links(html)
    assert f"{EVIL}: 1.5 s" in found.text and "script" not in found.tags
    assert "speed: by a stopwatch" in found.text and "Not made yet" not in found.text
    assert html.index("more appealing") < html.index("1.5 s") < html.index("<h2>Training")
    assert all((tmp_path / link).is_file() for link in found.links if not link.startswith("#"))
    assert "speed_report/index.html" in found.links and "front_page/speed_report-fast.png" in found.links


@pytest.mark.parametrize("path", sorted(HOME.rglob("*.*")), ids=lambda path: path.name)
def test_reports_know_no_fixed_models_and_the_index_no_report(path: Path):
    if path.suffix not in (".py", ".j2"):
        return
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b(un|fine-)?tuned\b|\bpretrained\b", text)
    if path.stem.startswith("index"):
        code = text.split("{% for card in cards %}")[-1].split('"""')[-1]
        assert not re.search(r"appeal|faithful|funnel|autoencoder|training|naming|automatic_report", code)


def test_a_study_that_was_not_asked_for_says_so_and_has_no_card(tmp_path: Path):
    write_generality_report(tmp_path / "generality", [], [], None, make_run())
    write_tuning_report(tmp_path / "tunings", [], [], None, make_run())
    for name, section in (("generality", "family_study.families"), ("tunings", "tuning_study")):
        text = (tmp_path / name / "index.html").read_text()
        assert section in text and "not people" not in text
        assert not (tmp_path / name / "cards").exists()


def test_what_a_longer_tuning_costs_stands_beside_what_it_wins():
    arms = [Arm("length", 1.0, "steps", steps, 0, make_outcome(name)) for steps, name in ((90, "strange"), (30, "a"))]
    shares = [Arm("share", 0.5, "steps", 60, 0, make_outcome("b"))]
    short, long = find_trade_off([*arms, *shares])
    assert (short["steps"], long["steps"]) == (30, 90)
    assert short["faithfulness"] == arms[1].outcome.appeal.win_less_lose.estimate and np.isnan(long["faithfulness"])


def test_every_report_of_the_graph_has_a_card(reports: Path):
    """Without one, the front page would read it but not show it."""
    assert {path.parent.name for path in reports.glob("*/cards")} == {*REPORTS, "training"}
    cards = [card for module in HOME.glob("*.py") for card in re.findall(r'Card\("(\w+)"', module.read_text())]
    assert sorted(cards) == sorted(path.name[5:-8] for path in HOME.glob("templates/card_*.html.j2"))


def test_the_index_keeps_the_pictures_that_belong_to_its_numbers(tmp_path: Path, reports: Path):
    """A report that is made again, with fewer pictures, does not break the page's."""
    shutil.copytree(reports, tmp_path / "reports")
    html = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    pictures = [tmp_path / "reports" / src for src in re.findall(r'<img src="([^"]+)"', html)]
    before = [path.read_bytes() for path in pictures]
    assert len(before) > 32
    for folder in ("automatic_report", "filtered_corpus", "autoencoder_study"):
        shutil.rmtree(tmp_path / "reports" / folder)
    assert [path.read_bytes() for path in pictures] == before
    assert "near-copies: <b>9 of 10</b>" in Links(html).text and "models:/emu/3" in html
    with pytest.raises(ValueError, match="of profile test, but this page is of other"):
        write_front(tmp_path / "reports", make_run(profile="other"), {})


def test_the_same_findings_give_the_same_bytes_and_a_failure_leaves_the_old_report(tmp_path: Path):
    for name in ("a", "b"):
        write_training(tmp_path / name / "training", make_run())
        write_autoencoder(tmp_path / name / "study", make_run())
    for one in (tmp_path / "a").rglob("*.*"):
        assert one.read_bytes() == (tmp_path / "b" / one.relative_to(tmp_path / "a")).read_bytes()
    study = tmp_path / "a" / "study"
    before = (study / "index.html").read_bytes()
    with pytest.raises(ValueError, match="has reconstructions of shape"):
        wrong = VariantFindings("c4", 4, 0, None, make_pictures(3))  # type: ignore[arg-type]
        write_autoencoder_report(study, [wrong], [], make_pictures(8), make_run())
    with pytest.raises(ValueError, match="pictures of ours"):
        save_pairs(PROMPTS, {"ours": make_pictures(3)}, {})
    assert (study / "index.html").read_bytes() == before
    assert not [path for path in study.parent.iterdir() if path.name.startswith(".")]


def test_a_training_is_read_from_its_model_folder(tmp_path: Path):
    with pytest.raises(ValueError, match="no finished training"):
        read_finished_training(tmp_path, "x")
    meta = {
        "name": "quality_tuned",
        "resolution": 64,
        "num_rows": 40,
        "num_parameters": 123,
        "result": {"num_steps": 50, "best_step": 25, "stopped_early": True},
        "spec": {"training": {"noise_offset": 0.1}},
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    lines = [
        {"step": 24, "loss": 1.2},
        {"step": 25, "loss": 1.0, "val_loss": 1.0, "lr": 1e-3},
        {"step": 50, "loss": 0.9, "val_loss": 1.1},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    training = read_finished_training(tmp_path, "Quality-tuning")
    assert training.curves["val_loss"].tolist()[1:] == [1.0, 1.1] and training.noise_offset == 0.1
    assert training.held_out == HeldOut(50, 1.1, 25, 1.0) == read_held_out(tmp_path)
    assert training.stopped_early and training.preview is None


losses = st.lists(st.floats(0.01, 10), min_size=1, max_size=12)


@given(losses)
@example([1.0, 1.001])  # rounds to a rise of 0 %
@example([1.0, 1.005])
def test_a_loss_and_its_step_are_named_together(values: list[float]):
    """Whatever the curve: each reported loss is the log's at the step that is reported beside it."""
    with TemporaryDirectory() as name:
        folder, log = Path(name), {5 * (n + 1): value for n, value in enumerate(values)}
        best, last = min(log, key=lambda step: log[step]), max(log)
        (folder / "meta.json").write_text(json.dumps({"result": {"num_steps": last, "best_step": best}}))
        lines = [
            {"step": step, "loss": 1.0} | ({"val_loss": log[step]} if step in log else {}) for step in range(last + 1)
        ]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        found = read_held_out(folder)
    described = found.describe()
    assert (
        f"step {last}, the last one, was published, with held-out loss {format_significant(log[last], 3)}" in described
    )
    if best == last:
        assert "the lowest of this training" in described and not found.rose and found.rise == 0
    else:
        assert f"the lowest was {format_significant(log[best], 3)} at step {best}" in described
        rise = format_share(log[last] / log[best] - 1)
        assert (f"rose by {rise} after its best step" in described) == found.rose == (rise != "0 %")
        assert "by 0 %" not in described


def test_a_log_that_lacks_the_step_is_refused(tmp_path: Path):
    (tmp_path / "meta.json").write_text(json.dumps({"result": {"num_steps": 30, "best_step": 20}}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 30, "val_loss": 1.0}))
    with pytest.raises(ValueError, match="no held-out loss for step 20"):
        read_held_out(tmp_path)


def test_every_training_says_whether_its_held_out_loss_rose_and_what_was_published(reports: Path):
    for page in ("training/index.html", "index.html"):
        text = " ".join(Links((reports / page).read_text(encoding="utf-8")).text.split())
        assert "Step 30, the last one, was published, with held-out loss 0.5, the lowest of this training." in text
        assert "loss 0.9; the lowest was 0.6 at step 20, so the loss rose by 50 % after its best step." in text
    assert "In 1 of them the loss on held-out rows" in " ".join(
        Links((reports / "training/index.html").read_text(encoding="utf-8")).text.split()
    )


@pytest.mark.parametrize("passed", [True, False])
def test_the_front_page_begins_with_the_verdict(tmp_path: Path, passed: bool):
    verdicts = {
        "appeal_report": {"passed": True, "reason": "it wins"},
        "x_report": {"passed": passed, "reason": "why so"},
    }
    registered = {"name": "emu", "version": 3, "alias": "champion" if passed else "challenger", "verdicts": verdicts}
    write_front(tmp_path, make_run(), {}, registered)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    begins = " ".join(Links(html.split("</style>")[1]).text.split())[:600]
    headline = "The candidate is accepted" if passed else "The candidate is refused"
    because = (
        "champion, because all 2 reports allow it." if passed else "challenger, because 1 of 2 reports refuse it: x."
    )
    assert headline in begins and f"models:/emu/3 is registered as {because}" in begins and "why so" in begins
    assert re.search(rf"<h1>{headline}</h1>", html)


def faults_of_prose(html: str) -> list[str]:
    """Return what in a page's text was not written for a page: marks of Markdown, Python's values, sentences run
    together."""
    html = re.sub(r"<(style|code|svg)\b.*?</\1>", "", html, flags=re.DOTALL)
    text = Links(re.sub(r"</(p|li|t[dhr]|h\d|d[dt]|div|figcaption|summary|span)>", " ", html)).text
    found = re.findall(r"`[^`]*`?|\*\*\w+|[a-zé)%]\.[A-Z][a-z]+", text)
    return found + [word for word in ("None", "nan", "NaN", "True", "False") if word in text.split()]


def test_what_a_page_says_is_written_for_people(reports: Path):
    for page in reports.rglob("index.html"):
        assert not faults_of_prose(page.read_text(encoding="utf-8")), page
    assert faults_of_prose("<p>it holds.Where it says `min_side` in None</p>") == ["s.Where", "`min_side`", "None"]


def test_every_page_names_the_md5_of_what_it_was_made_from(reports: Path):
    for page in reports.rglob("index.html"):
        text = Links(page.read_text(encoding="utf-8")).text
        assert all(name in text and md5 in text for name, md5 in MADE_FROM.items()), page


def test_a_page_as_one_file_needs_nothing_beside_it(tmp_path: Path, reports: Path):
    facts = {"made": "on <a day>"}
    for page in reports.rglob("index.html"):
        copied = standalone(page, reports, lambda path: f"http://here/{path}", facts)
        found, before = Links(copied), Links(page.read_text(encoding="utf-8"))
        assert "made on <a day>" in found.text and len(found.links) == len(before.links)
        for link, original in zip(found.links, before.links, strict=True):
            target = (page.parent / original).resolve()
            if original.endswith(".png"):
                assert base64.b64decode(link.removeprefix("data:image/png;base64,")) == target.read_bytes()
            elif not original.startswith("#"):
                assert link == f"http://here/{target.relative_to(reports).as_posix()}"


def test_files_too_large_for_one_page_are_linked(reports: Path, monkeypatch: pytest.MonkeyPatch):
    page = reports / "automatic_report" / "index.html"
    monkeypatch.setattr("emu_reports.standalone.INLINE_BYTES", 20_000)
    copied = standalone(page, reports, lambda path: f"http://here/{path}", {})
    assert "data:image/png" in copied and "http://here/automatic_report/pictures/" in copied and len(copied) < 100_000


def test_the_crop_is_where_the_detail_is():
    picture = np.full((64, 64, 3), 200, np.uint8)
    picture[40:56:2, 8:24] = 0
    y, x = find_detail(picture, 24)
    assert 30 <= y <= 40 and 0 <= x <= 8
    assert find_detail(np.zeros((16, 16, 3), np.uint8), 24) == (0, 0)


def test_the_picture_for_dagster_is_drawn():
    votes = pd.DataFrame(
        {
            "key": ["a", "b"],
            "rater": "r",
            "decision": ["A", "B"],
            "side_order": "AB",
            "is_repeat": False,
        }
    )
    picture = picture_preference("appeal", "ours", summarise_preference(votes))
    assert picture.width > 500 and len(set(np.asarray(picture).reshape(-1).tolist())) > 10


def test_what_is_not_a_number_is_null():
    assert to_json({"a": (np.float32(1), float("inf")), "b": pd.NA}) == {"a": [1.0, None], "b": None}


@pytest.mark.browser
@pytest.mark.parametrize("width", [420, 1280])
def test_no_page_is_wider_than_the_window(reports: Path, width: int):
    from playwright.sync_api import sync_playwright

    browser_path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
        None,
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark")
        asked: list[str] = []
        window.on("request", lambda request: asked.append(request.url))
        for path in sorted(reports.rglob("index.html")):
            window.goto(path.as_uri())
            assert window.evaluate("document.documentElement.scrollWidth") <= width, path
            assert window.evaluate("[...document.images].every(i => !i.complete || i.naturalWidth > 0)"), path
        assert all(url.startswith(("file:", "data:")) for url in asked)
        browser.close()
