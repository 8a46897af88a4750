import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emu_data.clip_models import find_clip
from emu_data.votes.items import Pair
from emu_data.votes.vote import Vote
from emu_models.evaluation.faithfulness import (
    RATERS,
    FaithfulnessPanel,
    decide,
    measure_naming,
    view_crop,
    view_mirror,
)
from emu_models.evaluation.judge import Judge, load_judge

COLOURS = {f"c{n}": np.random.default_rng(n).integers(0, 256, 3) for n in range(40)}


class ColourModel:
    """Embeds a picture by its mean colour, and a caption by the colour that it names."""

    def encode_image(self, batch: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.nn.functional.normalize(batch.mean((2, 3)) - 0.5, dim=1)

    def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.nn.functional.normalize(tokens - 0.5, dim=1)


@pytest.fixture
def judge() -> Judge:
    return Judge(
        "colours",
        ColourModel(),
        lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255,
        lambda captions: torch.from_numpy(np.stack([COLOURS[name] for name in captions])).float() / 255,
    )


def paint(names: list[str]) -> np.ndarray:
    return np.stack([np.broadcast_to(COLOURS[name].astype(np.uint8), (16, 16, 3)) for name in names])


def vote(judge: Judge, images_a: np.ndarray, images_b: np.ndarray, names: list[str]) -> list[Vote]:
    asked = zip(names, images_a, images_b, names, strict=True)
    return FaithfulnessPanel(judge, names).vote([Pair(*pair) for pair in asked])


def test_naming_is_perfect_for_true_pictures_and_near_chance_for_shuffled_ones(judge: Judge):
    names = list(COLOURS)
    true = measure_naming(judge, paint(names), names, names)
    assert true.top_1.estimate == 100 and true.top_1.low > 90
    assert true.num_captions == 40 and true.chance_top_5 == 12.5
    shuffled = measure_naming(judge, paint(names[7:] + names[:7]), names, names)
    assert shuffled.top_5.estimate < 40


def test_pairs_are_decided_as_the_pictures_are(judge: Judge):
    names = list(COLOURS)
    right, wrong = paint(names), paint(names[11:] + names[:11])
    for a, b, usual in (
        (right, wrong, "A"),
        (wrong, right, "B"),
        (right, right, "both"),
        (wrong, wrong, "neither"),
    ):
        votes = vote(judge, a, b, names)
        assert np.mean([one.decision == usual for one in votes]) > 0.7
        assert {one.rater for one in votes} == {rater.name for rater in RATERS} and len(votes) == 3 * len(names)


def test_swapping_the_pictures_swaps_the_decision(judge: Judge):
    names = list(COLOURS)
    a, b = paint(names[3:] + names[:3]), paint(names)
    swapped = {"A": "B", "B": "A", "both": "both", "neither": "neither"}
    for one, other in zip(vote(judge, a, b, names), vote(judge, b, a, names), strict=True):
        assert (one.rater, one.key, one.decision) == (other.rater, other.key, swapped[other.decision])
        assert one.score is not None and other.score is not None and one.score == -other.score


def test_a_close_pair_is_not_decided():
    shows = np.array([True, True]), np.array([False, False])
    found = decide(np.array([2.0, 2.0]), np.array([1.95, 1.0]), *shows, np.array([1.0, 1.99]), margin=0.1)
    assert found.tolist() == ["both", "A"]


def test_views_keep_the_shape_and_the_middle():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[:, 12:20, 4:10] = 255
    for view in (view_crop, view_mirror):
        seen = view(images)
        assert seen.shape == images.shape and seen.dtype == np.uint8 and seen.max() > 200
    assert view_mirror(images)[0, 16, 16:].max() == 255 and view_mirror(images)[0, 16, :16].max() == 0


def test_unknown_captions_are_refused(judge: Judge):
    with pytest.raises(ValueError, match="the first is 'c9'"):
        measure_naming(judge, paint(["c9"]), ["c9"], ["c1", "c2"])
    picture = paint(["c1"])[0]
    with pytest.raises(ValueError, match="the first is 'c9'"):
        FaithfulnessPanel(judge, ["c1"]).vote([Pair("k", picture, picture, "c9")])
    with pytest.raises(ValueError, match="1 to 3"):
        FaithfulnessPanel(judge, ["c1"], num_raters=4)


def test_a_model_folder_in_open_clips_layout_is_loaded(tmp_path: Path):
    import open_clip
    from safetensors.torch import save_file

    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    model = open_clip.CLIP(**config)
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    judge = load_judge(folder)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    embedded, captions = judge.embed_images(images), judge.embed_captions(["red apple", "rocket"])
    assert embedded.shape == (3, 16) and captions.shape == (2, 16) and judge.name == "judge"
    assert np.linalg.norm(embedded, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(judge.embed_images(images), embedded)
    with pytest.raises(ValueError, match="it lacks open_clip_config.json and open_clip_model.safetensors"):
        load_judge(tmp_path)
    with pytest.raises(ValueError, match="NAME@TAG"):
        load_judge(find_clip("ViT-B-32"))
