"""The alignment models learn which caption fits, out of fold, and continue where they were interrupted."""

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from emu_data.samples import Sample
from emu_data.signals import LazySample
from emu_data.signals.aesthetics import AestheticsSignal, fit_head
from emu_data.signals.alignment import AlignmentSignal
from emu_data.signals.concept import ConceptSignal
from emu_data.signals.embedding import Embedder, Encoder, embed
from emu_data.signals.safety import SafetySignal
from emu_models import alignment
from emu_models.alignment import AlignmentJob, assign_folds, train_alignment
from emu_models.alignment_learner import (
    MAX_CANDIDATES,
    AlignmentConfig,
    AlignmentLearner,
    choose_captions,
    rank_of,
)
from emu_models.training.loop import Interrupted, read_log
from emu_models.training.rows import Rows
from emu_models.training.running import Running
from tests.toy_training import LOOP, places

CONFIG = AlignmentConfig(width=8, embed_dim=32, text_width=32, batch_size=32)
BY = replace(LOOP, num_steps=60, learning_rate=4e-3, warmup_steps=20, ema_decay=0.0, validate_every=30)
COLOURS = {"red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 60, 220), "black": (15, 15, 15)}
SHAPES = ("ball", "box")


def draw_pairs(num_each: int) -> tuple[np.ndarray, list[str]]:
    """Return uint8 (N, 32, 32, 3) and captions: coloured balls and boxes on white; the last caption of each is
    wrong."""
    rng = np.random.default_rng(0)
    images, captions = [], []
    names = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    for index, name in enumerate(names):
        _, colour, shape = name.split()
        for copy in range(num_each):
            image = Image.new("RGB", (32, 32), "white")
            x, y, side = rng.integers(3, 8, 3)
            draw = ImageDraw.Draw(image)
            box = (x, y, x + 14 + side, y + 14 + side)
            (draw.ellipse if shape == "ball" else draw.rectangle)(box, fill=COLOURS[colour])
            images.append(np.asarray(image))
            captions.append(names[(index + 3) % len(names)] if copy == num_each - 1 else name)
    return np.stack(images), captions


def job_in(states: Path, **changes: Any) -> AlignmentJob:
    """Return the toy training, whose states are in `states`; its pictures are given to `train_alignment`."""
    asked: dict[str, Any] = {
        **places("alignment_model", (states, states), states),
        "states": states,
        "num_folds": 2,
        "loop": BY,
    }
    return AlignmentJob(**(asked | {"training": CONFIG} | changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    images, captions = draw_pairs(8)
    keys = [f"{i:09d}" for i in range(len(images))]
    folds = assign_folds(captions, keys, 2)
    made, metrics = train_alignment(job_in(tmp_path_factory.mktemp("states")), images, captions, keys, folds)
    return images, captions, keys, folds, made / "result", metrics


def to_records(images: np.ndarray, captions: list[str], keys: list[str]) -> list[LazySample]:
    records = []
    for image, caption, key in zip(images, captions, keys, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        records.append(LazySample(Sample(key, buffer.getvalue(), caption)))
    return records


def distinct_captions(captions: list[str]) -> tuple[str, ...]:
    return tuple(sorted(set(captions)))


def test_copies_share_a_fold_and_captions_rotate() -> None:
    captions = ["apple"] * 6 + ["pear"] * 6
    groups = ["a0", "a0", "a1", "a2", "a3", "a4", "p0", "p1", "p2", "p3", "p4", "a0"]
    folds = assign_folds(captions, groups, 3)
    assert len({folds[i] for i, group in enumerate(groups) if group == "a0"}) == 1
    for first in (0, 6):
        assert set(folds[first : first + 6]) == {0, 1, 2}
    order = np.random.default_rng(0).permutation(12)
    again = assign_folds([captions[i] for i in order], [groups[i] for i in order], 3)
    assert (again == folds[order]).all()


def test_wrong_captions_score_below_right_ones_out_of_fold(trained) -> None:
    images, captions, keys, _, folder, metrics = trained
    values = AlignmentSignal(str(folder), distinct_captions(captions)).measure(to_records(images, captions, keys))
    wrong = np.arange(len(keys)) % 8 == 7
    for column in ("alignment", "alignment_rank"):
        scores = np.array(values[column])
        assert (scores[~wrong][:, None] > scores[wrong]).mean() > 0.9
    assert all(0 <= rank <= 1 for rank in values["alignment_rank"])
    assert set(metrics) == {"fold_0", "fold_1"}
    for of_fold in metrics.values():
        assert of_fold["val_rank"] > 0.7 and of_fold["loss"] < 1.6  # of eight captions: ln 8 is 2.1


def test_each_pair_is_scored_by_the_model_that_did_not_see_it(trained) -> None:
    images, captions, keys, folds, folder, _ = trained
    names = distinct_captions(captions)
    records = to_records(images, captions, keys)
    together = AlignmentSignal(str(folder), names).measure(records)["alignment"]
    alone = [AlignmentSignal(str(folder / f"fold_{f}"), names).measure(records)["alignment"] for f in (0, 1)]
    for index, fold in enumerate(folds):
        assert together[index] == pytest.approx(alone[fold][index], abs=1e-5)
    strangers = to_records(images, captions, ["new"] * len(keys))
    means = AlignmentSignal(str(folder), names).measure(strangers)["alignment"]
    assert means == pytest.approx(np.mean(alone, axis=0).tolist(), abs=1e-5)
    assert pd.read_parquet(folder / "folds.parquet")["key"].tolist() == keys


def test_a_value_does_not_depend_on_the_neighbours(trained) -> None:
    """To the bit: the gates decide which pictures are measured together, and the ledger must not depend on that."""
    images, captions, keys, _, folder, _ = trained
    signal = AlignmentSignal(str(folder), distinct_captions(captions), mirrored=True)
    measure = signal.load()
    together = measure(to_records(images, captions, keys))
    order = np.random.default_rng(0).permutation(len(keys))[:20]
    others = measure(to_records(images[order], [captions[i] for i in order], [keys[i] for i in order]))
    for column in signal.columns:
        assert [together[column][i] for i in order] == others[column]
        alone = [measure(to_records(images[i : i + 1], [captions[i]], [keys[i]]))[column][0] for i in range(5)]
        assert alone == together[column][:5]


def test_one_embedding_serves_all_signals(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, captions, keys, _, folder, _ = trained
    encoder = Encoder(str(folder / "fold_0"))
    passes = []
    embed_images = Embedder.images
    monkeypatch.setattr(Embedder, "images", lambda self, batch: passes.append(len(batch)) or embed_images(self, batch))
    records = to_records(images, captions, keys)
    score = np.arange(len(keys)) % 3
    fit_head(embed(encoder, records), score, tmp_path / "head.safetensors")
    names = distinct_captions(captions)
    concept = ConceptSignal(tuple((name, name) for name in names), encoder).measure(records)
    AlignmentSignal(encoder.model, names).measure(records)
    aesthetics = AestheticsSignal(str(tmp_path / "head.safetensors"), encoder).measure(records)
    unsafe = SafetySignal(detector="zero_shot", encoder=encoder).measure(records)
    assert passes == [len(records)]
    right = [found == caption for found, caption in zip(concept["concept"], captions, strict=True)]
    assert np.mean(right) > 0.5  # of eight; it saw most of them, an eighth with another's caption
    assert aesthetics["aesthetics"] != aesthetics["richness"]
    assert all(0 <= value <= 1 for value in unsafe["unsafe_detected"])
    AlignmentSignal(encoder.model, names, mirrored=True).measure(records)
    assert passes == [len(records)] * 2


def test_a_caption_that_the_corpus_does_not_have_is_ranked_too(trained) -> None:
    images, captions, keys, _, folder, _ = trained
    few = tuple(name for name in distinct_captions(captions) if name != captions[0])
    value = AlignmentSignal(str(folder), few).measure(to_records(images[:1], captions[:1], keys[:1]))
    whole = AlignmentSignal(str(folder), distinct_captions(captions))
    expected = whole.measure(to_records(images[:1], captions[:1], keys[:1]))
    assert value["alignment"] == pytest.approx(expected["alignment"], abs=1e-5)
    assert value["alignment_rank"] == expected["alignment_rank"]


def test_an_interrupted_training_continues_as_if_it_had_not_been(trained, tmp_path: Path) -> None:
    """At the end of a model and within the next one; what was finished before is not trained again."""
    images, captions, keys, folds, *_ = trained
    heard: list[int] = []

    def train(name: str, stop_at: int = 0) -> Path:
        """In the folder `name`, until so many steps of this start are done."""
        heard.clear()
        job = job_in(tmp_path / name, loop=replace(BY, num_steps=6, validate_every=4))
        running = Running(lambda step, metrics: heard.append(step), stop_requested=lambda: len(heard) == stop_at - 1)
        return train_alignment(job, images, captions, keys, folds, running)[0] / "result"

    whole = train("whole")
    assert heard == list(range(1, 13))  # one curve for both models
    with pytest.raises(Interrupted):
        train("parts", stop_at=6)
    with pytest.raises(Interrupted):
        train("parts", stop_at=3)
    assert not list((tmp_path / "parts").rglob("result")) and heard == [7, 8, 9]
    parts = train("parts")
    assert heard == [10, 11, 12]
    assert read_files(parts) == read_files(whole)
    assert [line["step"] for line in read_log(parts / "fold_1") if "val_loss" in line] == [4, 6]


def test_another_training_is_made_beside_and_the_first_is_found_again(trained, tmp_path: Path, monkeypatch) -> None:
    images, captions, keys, folds, *_ = trained
    brief = job_in(tmp_path, loop=replace(BY, num_steps=2))
    flipped, others = images[:, :, ::-1].copy(), ["a red box", *captions[1:]]
    first = train_alignment(brief, images, captions, keys, folds)
    before = read_files(first[0])
    made = {first[0]}
    for pixels, texts, places_, job in (
        (flipped, captions, folds, brief),
        (images, others, folds, brief),
        (images, captions, 1 - folds, brief),
        (images, captions, folds, replace(brief, num_folds=3)),
        (images, captions, folds, replace(brief, code="other code")),
    ):
        made.add(train_alignment(job, pixels, texts, keys, places_)[0])
    assert len(made) == 6 == len(list(tmp_path.iterdir()))
    monkeypatch.setattr(alignment, "run_training", None)
    assert train_alignment(brief, images, captions, keys, folds) == first
    assert read_files(first[0]) == before


def test_without_held_out_pictures_nothing_is_validated(trained, tmp_path: Path) -> None:
    """Three folds of two pictures: one model learns from both."""
    images, captions, *_ = trained
    job = job_in(tmp_path, loop=replace(BY, num_steps=2), num_folds=3)
    folder, metrics = train_alignment(job, images[:2], captions[:2], ["a", "b"], np.array([0, 1]))
    assert ["val_loss" in metrics[f"fold_{i}"] for i in range(3)] == [True, True, False]
    assert not any("val_loss" in line for line in read_log(folder / "result" / "fold_2"))


def test_a_held_out_caption_is_judged_but_not_learnt_from() -> None:
    images, captions = draw_pairs(2)
    held = np.array([caption == captions[0] for caption in captions])
    learner = AlignmentLearner(Rows([f"{i}" for i in range(len(images))], captions, images, held), CONFIG)
    assert learner.num_learnt == len(set(captions)) - 1 and len(learner.tokens_TL) == len(set(captions))
    assert len(learner.prepare(0).candidates_T) == learner.num_learnt
    metrics = learner.validate(learner.averaged)
    assert metrics == learner.validate(learner.averaged) and 0 <= metrics["val_rank"] <= 1


@settings(deadline=None)
@given(st.integers(1, 3 * MAX_CANDIDATES), st.integers(1, 2 * MAX_CANDIDATES), st.integers(0, 5))
def test_a_picture_is_compared_with_its_own_caption_and_others(num_captions: int, num: int, seed: int) -> None:
    """Even if a batch has more captions than MAX_CANDIDATES."""
    generator = torch.Generator().manual_seed(seed)
    label_B = torch.randint(num_captions, (num,), generator=generator)
    candidates_T, target_B = choose_captions(label_B, num_captions, generator)
    assert torch.equal(candidates_T[target_B], label_B)
    assert len(candidates_T.unique()) == len(candidates_T)
    assert len(candidates_T) == min(num_captions, max(MAX_CANDIDATES, len(label_B.unique())))


def test_the_rank_is_the_share_of_other_captions_below() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    assert rank_of(logits, torch.tensor([0, 0, 0])).tolist() == [1.0, 0.75, 0.0]
    assert rank_of(logits[:, :1], torch.tensor([0, 0, 0])).tolist() == [1.0, 1.0, 1.0]


def read_files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_the_signals_version_depends_on_the_weights(trained, tmp_path: Path) -> None:
    _, captions, _, _, folder, _ = trained
    names = distinct_captions(captions)
    version = AlignmentSignal(str(folder), names).version
    assert AlignmentSignal(str(folder), names[::-1]).version == version
    assert AlignmentSignal(str(folder), names[1:]).version != version
    os.symlink(folder / "fold_0", tmp_path / "elsewhere")
    one = AlignmentSignal(str(tmp_path / "elsewhere"), names).version
    assert one == AlignmentSignal(str(folder / "fold_0"), names).version
    assert one != AlignmentSignal(str(folder / "fold_1"), names).version


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    images, captions = draw_pairs(2)
    keys = [f"{i}" for i in range(len(images))]
    folds, job = np.zeros(len(images), np.int64), job_in(tmp_path)
    with pytest.raises(ValueError, match="as many of each"):
        train_alignment(job, images[1:], captions, keys, folds)
    with pytest.raises(ValueError, match="no picture to learn from"):
        train_alignment(job, images, captions, keys, folds)
    with pytest.raises(ValueError, match="uint8"):
        train_alignment(job, images / 255, captions, keys, folds)
