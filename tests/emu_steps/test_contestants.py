"""Contestants: any model, registered version or folder of pictures is compared with any other; no name is special."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from emu_dagster import registering
from emu_dagster.declarations.declared import DECLARATIONS, Declaration
from emu_data.files import write_parquet
from emu_data.votes.rounds import open_log
from emu_data.votes.vote import Vote
from emu_steps import evaluating
from emu_steps.contestants import Drawn, find_pictures, name_of_picture, read_drawn
from emu_steps.evidence import NoEvidence, read_evidence
from emu_steps.judging import appeal_ballots, report_preference
from emu_steps.layout import Layout
from emu_steps.params import Params, read_params
from emu_steps.voting import recorded_round
from tests.checkpoints import make_checkpoint
from tests.profiles import text_of

TOP = Path(__file__).parent.parent.parent
MAKERS = {"data/models/quality_tuned": "quality_tuned"}
PROMPTS = ["a Red apple", "blue: a/b?", "ball", "ünï, 2 dogs"]


@pytest.fixture
def write_params(project: Path) -> Callable[..., Params]:
    """write_params(contestants, comparison, **evaluation_images) writes params.yaml and reads it."""

    def write(contestants: dict[str, str] | None = None, comparison: Any = None, **changes: Any) -> Params:
        params = yaml.safe_load(text_of("smoke"))
        params["evaluation_images"] |= {"fixed_prompts": PROMPTS, "num_prompts": len(PROMPTS), **changes}
        params["quality_tuned"]["resolution"] = 32
        if contestants:
            params["evaluation_images"]["contestants"] = contestants
        if comparison:
            params["comparison"] = list(comparison)
        (project / "params.yaml").write_text(yaml.safe_dump(params))
        return read_params(project / "params.yaml")

    return write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("sd1", tmp_path_factory.mktemp("checkpoint") / "sd1")


@pytest.fixture
def layout(project: Path) -> Layout:
    """A project with a filtered corpus whose captions are the prompts."""
    layout = Layout(project)
    ledger = pd.DataFrame({"key": ["k0", "k1"], "caption": ["ball", "a cat"], "first_failed_gate": ["", "quota"]})
    write_parquet(layout.filtered / "ledger" / "00000.parquet", ledger)
    return layout


@pytest.fixture(scope="module")
def declaration() -> Iterator[Declaration]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMU_ROOT", str(TOP))
        import emu_dagster.definitions  # noqa: F401
    yield DECLARATIONS["evaluation_images"]


def draw_foreign(folder: Path, seed: int, prompts: list[str] = PROMPTS) -> None:
    """Write pictures as another tool leaves them: with other sizes and in other formats."""
    folder.mkdir(parents=True)
    for number, prompt in enumerate(prompts):
        pixels = np.random.default_rng((seed, number)).integers(0, 256, (40 + number, 56, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name_of_picture(prompt)}{['.png', '.JPG', '.webp'][number % 3]}")


def drawn_of(params: Params, judged: dict[str, str]) -> Drawn:
    contestants = params.evaluation_images.contestants
    return Drawn(judged, {name: MAKERS.get(address, address) for name, address in contestants.items()})


def hold_appeal(layout: Layout, params: Params) -> dict[str, str]:
    ballots = appeal_ballots(layout, params.appeal_votes, params.comparison)
    with recorded_round(layout, "appeal", ballots):
        return ballots.items


def test_a_model_is_compared_with_foreign_pictures_from_drawing_to_the_gate(
    layout: Layout, write_params: Callable[..., Params], checkpoint: Path
):
    """Three contestants; two comparisons in one round, each with the votes about its own pictures."""
    shutil.copytree(checkpoint, layout.model("quality_tuned"))
    draw_foreign(layout.root / "rivals" / "one", 1)
    draw_foreign(layout.root / "rivals" / "two", 2)
    contestants = {"ours": "data/models/quality_tuned", "one": "rivals/one", "two": "rivals/two"}
    params = write_params(contestants, ["ours", "one"], num_inference_steps=1)
    judged: dict[str, str] = {"quality_tuned": "a" * 32}
    metrics, *sheets = evaluating.draw_contestants(layout, params, drawn_of(params, judged), {})
    counts = {"num_prompts": 4, "num_images": 12, "num_captions": 1, "num_prompts_cut_ours": 0}
    assert metrics == counts and sheets[0].width > 1
    assert read_drawn(layout).made_by == {"ours": "quality_tuned", "one": "rivals/one", "two": "rivals/two"}
    for name in contestants:
        for file in (layout.evaluation / name).iterdir():
            assert Image.open(file).size == (32, 32), file

    items = hold_appeal(layout, params)
    people = [Vote("appeal", "anna", "person", key, "A", side_order="AB", seen=seen) for key, seen in items.items()]
    open_log(layout.votes("appeal")).append(people)
    hold_appeal(layout, params)
    found, voters, _ = report_preference(layout, params, "appeal", judged)
    assert (found["win"], voters) == (100, "4 votes of 1 person")
    assert read_evidence(layout, "appeal_report", judged.get)["candidate"] == "ours"
    page = (layout.report("appeal_report") / "index.html").read_text()
    assert "<h3>ours wins</h3>" in page and "<th>one, %</th>" in page

    other = write_params(contestants, ["two", "ours"], num_inference_steps=1)
    assert not set(hold_appeal(layout, other).values()) & set(items.values())
    _, voters, _ = report_preference(layout, other, "appeal", judged)
    assert "not people" in voters  # anna has not seen this pair
    with pytest.raises(NoEvidence, match=r"is about rivals/two, but only quality_tuned is registered"):
        read_evidence(layout, "appeal_report", judged.get)

    assert hold_appeal(layout, params) == items
    again, voters, _ = report_preference(layout, params, "appeal", judged)
    assert (again, voters) == (found, "4 votes of 1 person")


def test_a_comparison_with_a_contestant_that_was_not_drawn_says_what_to_do(
    layout: Layout, write_params: Callable[..., Params]
):
    for seed, name in enumerate(("one", "two")):
        draw_foreign(layout.root / name, seed)
    params = write_params({"one": "one", "two": "two"}, ["one", "two"])
    with pytest.raises(ValueError, match=r"drawn.json is missing; materialise evaluation_images"):
        appeal_ballots(layout, params.appeal_votes, params.comparison)
    evaluating.draw_contestants(layout, params, drawn_of(params, {}), {})
    with pytest.raises(ValueError, match=r"no pictures of new, only of one, two; materialise evaluation_images"):
        appeal_ballots(layout, params.appeal_votes, ("new", "one"))


def test_a_folder_that_lacks_pictures_is_one_line_and_nothing_is_drawn(
    layout: Layout, write_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluating, "draw_all", lambda *_: pytest.fail("drew before it looked"))
    (layout.root / "model").mkdir()
    (layout.root / "model" / "model_index.json").write_text("{}")
    draw_foreign(layout.root / "some", 0, PROMPTS[:1])
    params = write_params({"ours": "model", "some": "some"}, ["ours", "some"])
    with pytest.raises(ValueError) as caught:
        evaluating.draw_contestants(layout, params, drawn_of(params, {}), {})
    reported = str(caught.value)
    assert "\n" not in reported and reported.startswith("evaluation_images.contestants.some: ")
    assert "lacks 3 of 4: blue-a-b.png, ball.png, ünï-2-dogs.png; a picture is named by its prompt" in reported
    assert not layout.evaluation.exists()
    (layout.root / "some" / "A RED, apple.jpeg").touch()
    with pytest.raises(ValueError, match=r"A RED, apple.jpeg and a-red-apple.png are both of 'a Red apple'"):
        find_pictures("some", layout.root / "some", {"0000": PROMPTS[0]})
    with pytest.raises(
        ValueError, match=r"'ball' and 'Ball!' would have the same picture ball.*or by the prompt's number"
    ):
        find_pictures("some", layout.root / "some", {"0000": "ball", "0001": "Ball!"})
    with pytest.raises(ValueError, match="there is no folder"):
        find_pictures("none", layout.root / "none", {"0000": "ball"})


def test_a_foreign_picture_may_be_named_by_the_number_of_its_prompt(layout: Layout):
    """Two prompts may differ in a single mark, and other tools number what they draw. Any format that is read is
    accepted."""
    for name in ("0000.avif", "0001.png", "a-cat.gif", "9999.png"):
        (layout.root / name).touch()
    found = find_pictures("some", layout.root, {"0000": "Ball", "0001": "Ball!", "0002": "a cat"})
    assert [path.name for path in found] == ["0000.avif", "0001.png", "a-cat.gif"]


@given(st.text(min_size=1, max_size=400))
def test_the_name_of_a_picture_fits_a_file_system_and_is_unambiguous(prompt: str):
    name = name_of_picture(prompt)
    assert len(f"{name}.webp".encode()) <= 255
    assert name_of_picture(name) == name and not set(name) & set('/\\:*?"<>| \0')


@pytest.mark.parametrize(
    ("contestants", "comparison", "reported"),
    [
        ({"a": "x", "real": "y"}, ["a", "real"], "'real' cannot be the name of a contestant"),
        ({"a": "x", "../b": "y"}, ["a", "a"], "'../b' cannot be the name of a contestant"),
        ({"a": "x", "b": "models:/emu"}, ["a", "b"], "neither models:/NAME/VERSION nor models:/NAME@ALIAS"),
        ({"a": "x"}, ["a", "a"], "evaluation_images.contestants"),
        ({"a": "x", "b": "y"}, ["a", "c"], "comparison: there is no contestant 'c'; there are: a, b"),
        ({"a": "x", "b": "y"}, None, "comparison: there is no contestant 'tuned'; there are: a, b"),
        ({"a": "x", "b": "y"}, ["a", "a"], "comparison: .*a is compared with itself"),
        (
            {"a": "x", "b": "models:/emu-smoke@champion"},
            ["a", "b"],
            "an alias that the result of this comparison moves",
        ),
    ],
)
def test_contestants_that_cannot_be_compared_are_refused_by_name(
    write_params: Callable[..., Params], contestants: dict[str, str], comparison: list[str] | None, reported: str
):
    if comparison is None:  # the default compares the usual contestants
        comparison = ["tuned", "pretrained"]
    with pytest.raises(ValueError, match=reported):
        write_params(contestants, comparison)


def test_who_is_compared_decides_what_is_read(write_params: Callable[..., Params], declaration: Declaration):
    usual = write_params()
    layout = Layout(TOP)
    assert usual.evaluation_images.contestants["pretrained"] == usual.quality_tuned.start_from
    assert {"pretrained_full", "quality_tuned"} <= set(declaration.inputs(usual, layout))
    mixed = write_params({"a": "data/models/pretrained_mid", "b": "docs"}, ["a", "b"])
    assert declaration.inputs(mixed, layout) == ["pretrained_mid", "filtered_corpus"]
    assert declaration.brought(mixed, layout) == [TOP / "docs"]
    assert declaration.code_version(usual, layout) != declaration.code_version(mixed, layout)


def test_a_registered_version_counts_by_its_bytes_and_not_by_its_address(
    write_params: Callable[..., Params], declaration: Declaration, monkeypatch: pytest.MonkeyPatch
):
    params = write_params({"a": "models:/other@best", "b": "docs"}, ["a", "b"])
    layout, seen = Layout(TOP), []
    answers = {"models:/other@best": "1" * 32}
    monkeypatch.setattr(registering, "digest_of_version", lambda address: seen.append(address) or answers[address])
    one = declaration.code_version(params, layout)
    assert declaration.code_version(params, layout) == one and set(seen) == {"models:/other@best"}
    answers["models:/other@best"] = "2" * 32  # the alias moved
    assert declaration.code_version(params, layout) != one
