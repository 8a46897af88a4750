"""The alignment models learn which caption fits, out of fold, and go on where they were interrupted."""

import dataclasses
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from emu_data.records import Sample
from emu_data.signals import Record
from emu_data.signals.aesthetics import AestheticsSignal, fit_head
from emu_data.signals.alignment import AlignmentSignal
from emu_data.signals.concept import ConceptSignal
from emu_data.signals.embedding import Embedder, Encoder, embed
from emu_data.signals.safety import SafetySignal
from emu_models import alignment
from emu_models.alignment import AlignmentConfig, assign_folds, train_alignment

CONFIG = AlignmentConfig(
    num_folds=2, width=8, embed_dim=32, text_width=32, num_steps=60, batch_size=32, learning_rate=4e-3
)
COLOURS = {"red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 60, 220), "black": (15, 15, 15)}
SHAPES = ("ball", "box")


def draw_pairs(num_each: int) -> tuple[np.ndarray, list[str]]:
    """uint8 (N, 32, 32, 3) and captions: coloured balls and boxes on white, the last of each caption wrong."""
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    images, captions = draw_pairs(8)
    keys = [f"{i:09d}" for i in range(len(images))]
    folds = assign_folds(captions, keys, CONFIG.num_folds)
    result = train_alignment(images, captions, keys, folds, CONFIG, tmp_path_factory.mktemp("states"), progress=False)
    return images, captions, keys, folds, result.folder / "result", result


def to_records(images: np.ndarray, captions: list[str], keys: list[str]) -> list[Record]:
    records = []
    for image, caption, key in zip(images, captions, keys, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        records.append(Record(Sample(key, buffer.getvalue(), caption)))
    return records


def distinct_captions(captions: list[str]) -> tuple[str, ...]:
    return tuple(sorted(set(captions)))


def test_copies_share_a_fold_and_captions_go_round() -> None:
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
    images, captions, keys, _, folder, result = trained
    values = AlignmentSignal(str(folder), distinct_captions(captions)).measure(to_records(images, captions, keys))
    wrong = np.arange(len(keys)) % 8 == 7
    for column in ("alignment", "alignment_rank"):
        scores = np.array(values[column])
        assert (scores[~wrong][:, None] > scores[wrong]).mean() > 0.9
    assert all(0 <= rank <= 1 for rank in values["alignment_rank"])
    assert set(result.losses) == {"fold_0", "fold_1"}


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


def test_value_does_not_depend_on_the_neighbours(trained) -> None:
    """To the bit: which pictures are measured together follows from the gates, and the ledger must not."""
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


def test_caption_that_the_corpus_does_not_have_is_ranked_too(trained) -> None:
    images, captions, keys, _, folder, _ = trained
    few = tuple(name for name in distinct_captions(captions) if name != captions[0])
    value = AlignmentSignal(str(folder), few).measure(to_records(images[:1], captions[:1], keys[:1]))
    whole = AlignmentSignal(str(folder), distinct_captions(captions))
    expected = whole.measure(to_records(images[:1], captions[:1], keys[:1]))
    assert value["alignment"] == pytest.approx(expected["alignment"], abs=1e-5)
    assert value["alignment_rank"] == expected["alignment_rank"]


def test_an_interrupted_training_goes_on_with_the_next_model(trained, tmp_path: Path, monkeypatch) -> None:
    images, captions, keys, folds, folder, result = trained
    trained_now: list[int] = []
    train = alignment.train_network

    def count(images: np.ndarray, *rest):
        trained_now.append(len(images))
        return train(images, *rest)

    monkeypatch.setattr(alignment, "train_network", count)
    states = tmp_path / "states"
    shutil.copytree(folder.parent, states / folder.parent.name)
    part = states / folder.parent.name
    shutil.rmtree(part / "result")  # as if it had been killed before the last model
    shutil.rmtree(part / "state" / "fold_1")
    again = train_alignment(images, captions, keys, folds, CONFIG, states, progress=False)
    assert len(trained_now) == 1
    assert again.losses == result.losses and set(again.losses) == {"fold_0", "fold_1"}
    assert read_files(again.folder / "result") == read_files(folder)


def test_another_training_is_made_beside_and_the_first_is_found_again(trained, tmp_path: Path, monkeypatch) -> None:
    images, captions, keys, folds, *_ = trained
    brief = dataclasses.replace(CONFIG, num_steps=2)
    flipped, others = images[:, :, ::-1].copy(), ["a red box", *captions[1:]]
    first = train_alignment(images, captions, keys, folds, brief, tmp_path, progress=False)
    before = read_files(first.folder)
    made = {first.folder}
    for pixels, texts, places, config, code in (
        (flipped, captions, folds, brief, ""),
        (images, others, folds, brief, ""),
        (images, captions, 1 - folds, brief, ""),
        (images, captions, folds, dataclasses.replace(brief, num_folds=3), ""),
        (images, captions, folds, brief, "other code"),
    ):
        made.add(train_alignment(pixels, texts, keys, places, config, tmp_path, code, progress=False).folder)
    assert len(made) == 6 == len(list(tmp_path.iterdir()))
    monkeypatch.setattr(alignment, "train_network", None)
    assert train_alignment(images, captions, keys, folds, brief, tmp_path, progress=False) == first
    assert read_files(first.folder) == before


def read_files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_version_of_the_signal_follows_the_weights(trained, tmp_path: Path) -> None:
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
    folds = np.zeros(len(images), np.int64)
    with pytest.raises(ValueError, match="equally many"):
        train_alignment(images[1:], captions, keys, folds, CONFIG, tmp_path, progress=False)
    with pytest.raises(ValueError, match="no picture to learn from"):
        train_alignment(images, captions, keys, folds, CONFIG, tmp_path, progress=False)
    with pytest.raises(ValueError, match="uint8"):
        train_alignment(images / 255, captions, keys, folds, CONFIG, tmp_path, progress=False)
