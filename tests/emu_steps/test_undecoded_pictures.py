"""Raw pictures that have not passed the cascade are decoded in a guard's child alone, and one that cannot be decoded
costs no asset anything."""

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFile

from emu_data.cascade import StopRule, measure_group, read_values
from emu_data.guarded import look_guarded, measure_guarded
from emu_data.ledger import decide, open_ledger, write_ledger
from emu_data.samples import Sample, make_key
from emu_data.shards import write_shard
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.looks import LooksSignal
from emu_reports.funnel import read_examples
from emu_steps.corpora import first_images
from emu_steps.filtering import show_rejected
from emu_steps.layout import Layout
from emu_steps.training_jobs import alignment_job, write_training_rows
from tests.poison import poisoned_caption
from tests.profiles import params_of
from tests.shards import encode

TOP = Path(__file__).parents[2]
SMALL, LARGE = 40, 64  # px; the gate is between them
POLICY = {"min_side": 50.0}
NUM = 8
BROKEN = {make_key(0, 1), make_key(0, 2)}  # a small and a large one whose headers are intact

# Which modules decode pictures outside a guard, and why each of these pictures was decoded before.
NAMES = {"decode_rgb", "read_images", "LazySample"}
DECODERS = {
    "emu_dagster/defs/corpus.py": "rows of the alignment training, which look_guarded decoded",
    "emu_dagster/commands/studio_rounds.py": "data/filtered, whose pictures passed the cascade",
    "emu_data/guarded.py": "in the guard's child",
    "emu_data/cascade.py": "in the guard's child",
    "emu_data/samples.py": "published: of keys that passed the cascade",
    "emu_data/shards.py": "read_images: of keys that its callers know to be readable",
    "emu_data/signals": "measured in the guard's child",
    "emu_data/sources/packages.py": "pictures of packages whose digests are pinned in the code",
    "emu_models/training/squares.py": "rows that look_guarded decoded or that passed the gates",
    "emu_models/judge_training.py": "rows that passed the gates",
    "emu_models/training/rows.py": "rows of a training, which passed the gates or look_guarded",
    "emu_steps/aesthetics_head.py": "data/filtered, whose pictures passed the cascade",
    "emu_steps/comparing.py": "data/curated and data/filtered",
    "emu_steps/choosing.py": "data/filtered, whose pictures passed the cascade",
    "emu_steps/contestants.py": "a folder of a contestant's pictures, which is no part of the corpus",
    "emu_steps/evaluating.py": "rows that passed the gates, and data/curated",
    "emu_steps/filtering.py": "data/filtered, whose pictures passed the cascade",
    "emu_steps/judging.py": "rows that passed the gates",
    "emu_steps/voting.py": "data/filtered, whose pictures passed the cascade",
    "emu_steps/wanted.py": "rows that passed the gates",
}


def picture(index: int) -> bytes:
    """Return a PNG of noise; a broken one lacks its second half."""
    side = SMALL if index % 2 else LARGE
    data = encode(Image.fromarray(np.random.default_rng(index).integers(0, 255, (side, side, 3), np.uint8)))
    return data[: len(data) // 2] if make_key(0, index) in BROKEN else data


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A corpus with broken pictures and its ledger; from here on this process must not decode pictures."""
    layout, keys = Layout(tmp_path), [make_key(0, index) for index in range(NUM)]
    layout.raw.mkdir(parents=True)
    samples = [Sample(key, picture(index), f"noise {index}") for index, key in enumerate(keys)]
    sides = [SMALL if index % 2 else LARGE for index in range(NUM)]
    rows = pd.DataFrame({"key": keys, "caption": [s.caption for s in samples], "status": "success"})
    write_shard(layout.raw, 0, samples, rows.assign(width=sides, height=sides))
    signals = (GeometrySignal(), LooksSignal())
    measure_group(layout.raw, ["00000"], signals, layout.signals, StopRule((POLICY,)), progress=False)
    write_ledger(layout.ledger, decide(read_values(layout.raw, ["00000"], signals, layout.signals), POLICY))

    def refuse(*_: object) -> None:
        pytest.fail("a picture was decoded outside a guard")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    return layout


def shown_first(layout: Layout) -> list[str]:
    return [make_key(0, int(caption.split()[1])) for caption in first_images(layout.raw, NUM, 8)[1]]


def for_alignment(layout: Layout) -> list[str]:
    params = params_of("smoke")
    return pd.read_parquet(alignment_job(layout, params.alignment_model, params.launch).rows)["key"].tolist()


def for_autoencoder(layout: Layout) -> list[str]:
    section = params_of("smoke").autoencoder_study.model_copy(update={"resolution": 32})
    return pd.read_parquet(write_training_rows(layout, section.resolution, section.max_images))["key"].tolist()


READABLE = [make_key(0, index) for index in range(NUM) if make_key(0, index) not in BROKEN]


@pytest.mark.parametrize("step", [shown_first, for_alignment, for_autoencoder])
def test_before_there_is_a_ledger_pictures_that_cannot_be_decoded_are_left_out(
    layout: Layout, step: Callable[[Layout], list[str]]
) -> None:
    assert step(layout) == READABLE


def test_rejected_pictures_that_were_never_decoded_are_shown_only_if_they_can_be(layout: Layout) -> None:
    with open_ledger(layout.ledger) as con:
        ledger = con.execute("SELECT * FROM ledger ORDER BY key").df()
        examples = read_examples(con, layout.raw, "ledger")
    gates = dict(zip(ledger["key"], ledger["first_failed_gate"], strict=True))
    assert [gates[key] for key in sorted(BROKEN)] == ["geometry", "readable"]  # only the large one was decoded
    small = [f"noise {index}" for index in range(3, NUM, 2)]
    assert {gate: [caption for _, caption in found] for gate, found in examples.items()} == {"geometry": small}
    assert [gate for _, gate in show_rejected(layout, ledger, NUM)] == ["geometry"] * len(small)


def test_pictures_have_the_size_of_their_files_however_small_they_are_decoded() -> None:
    samples = [Sample(str(side), encode(Image.new("RGB", (2 * side, side)), "JPEG"), "") for side in (100, 1500)]
    assert [size for _, size in measure_guarded(samples)] == [(200, 100), (3000, 1500)]


@pytest.mark.parametrize("how", ["raise", "crash"])
def test_a_picture_that_ends_its_decoder_loses_only_itself(how: str) -> None:
    samples = [Sample(str(index), b"", how if index == 2 else f"picture {index}") for index in range(4)]
    assert [seen for _, seen in look_guarded(samples, poisoned_caption)] == [
        s.caption for s in samples if s.caption != how
    ]


def test_each_module_that_decodes_pictures_outside_a_guard_is_listed_with_its_reason() -> None:
    found = set()
    for package in ("emu_data", "emu_models", "emu_reports", "emu_steps", "emu_dagster"):
        for file in (TOP / package).rglob("*.py"):
            used = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
            name = file.relative_to(TOP).as_posix()
            if used & NAMES:
                found.add("emu_data/signals" if name.startswith("emu_data/signals/") else name)
    assert found == DECODERS.keys()
