import numpy as np
import pytest

from emu_models.evaluation.memorisation import find_nearest, is_near_copy, nearest_among


def make_pictures(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num, 8, 8, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    return rng.normal(size=(num, 5)), coarse


def test_a_copy_is_found_by_both_measures():
    training, images = make_pictures(20, 0)
    generated, new_images = make_pictures(4, 1)
    generated[2], new_images[2] = 3 * training[7], images[13]
    keys = [f"k{n}" for n in range(20)]
    found = find_nearest(generated, training, keys, new_images, images)
    assert found.loc[2, "nearest_key"] == "k7" and found.loc[2, "similarity"] == pytest.approx(1)
    assert found.loc[2, "nearest_pixel_key"] == "k13"
    assert found.loc[2, "pixel_distance"] == pytest.approx(0, abs=1e-6)
    assert (found["pixel_distance"].drop(2) > 0.1).all()
    assert is_near_copy(found, nearest_among(training, images)).mean() == 0.25


def test_distances_by_hand_and_across_sizes():
    black, white = np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 32, 32, 3), 255, np.uint8)
    found = find_nearest(np.array([[1.0, 0]]), np.array([[-1.0, 0]]), ["k"], black, white)
    assert found.loc[0, "pixel_distance"] == pytest.approx(1) and found.loc[0, "similarity"] == -1


def test_the_yardstick_leaves_out_the_picture_itself():
    training, images = make_pictures(6, 0)
    images[5], training[5] = images[0], training[0]
    among = nearest_among(training, images)
    assert among["pixel_distance"][[0, 5]].max() < 1e-6 and among["pixel_distance"][1:5].min() > 0.1


def test_inconsistent_counts_are_refused():
    training, images = make_pictures(3, 0)
    with pytest.raises(ValueError, match="numbers must be equal"):
        find_nearest(training, training, ["a"], images, images)
    with pytest.raises(ValueError, match="at least 1"):
        find_nearest(training, training[:0], [], images, images[:0])
