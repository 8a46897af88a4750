"""Small pictures that are read from a file instead of being in memory."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emu_data.shards import read_images
from emu_models.training import squares
from emu_models.training.rows import Rows
from emu_models.training.squares import Squares, open_squares
from tests.shards import write_toy_shards


def test_squares_are_the_pictures_and_are_cut_once(tmp_path: Path, monkeypatch) -> None:
    shards, table = write_toy_shards(tmp_path, num_images=9)
    keys = pd.read_parquet(table)["key"].tolist()[::-1]
    whole = read_images(shards, keys, 16)
    found = open_squares(shards, keys, 16, tmp_path / "cache")
    assert found.shape == whole.shape and found.dtype == whole.dtype and len(found) == 9
    assert np.array_equal(found[:], whole) and np.array_equal(found[np.array([4, 0, 4])], whole[[4, 0, 4]])
    assert np.array_equal(np.stack(list(found)), whole)
    found[:2][:] = 0  # a copy
    with monkeypatch.context() as patch:
        patch.setattr(squares, "iter_samples", None)
        assert np.array_equal(open_squares(shards, keys, 16, tmp_path / "cache")[:], whole)
    other = tmp_path / "other"
    other.mkdir()
    others, _ = write_toy_shards(other, num_images=9, side=40)  # the same keys with other pictures
    assert not np.array_equal(open_squares(others, keys, 16, tmp_path / "cache")[:], whole)


def test_a_part_of_them_reads_nothing(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    held = np.array([True, False, False, True, False, False])
    rows = Rows([*"abcdef"], [*"uvwxyz"], Squares(stored, np.arange(6)), held)
    trained = rows.trained.images
    assert isinstance(trained, Squares) and trained._stored is stored
    assert np.array_equal(trained[:], stored[~held]) and np.array_equal(rows.held.images[1], stored[3])


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    shards, table = write_toy_shards(tmp_path, num_images=3)
    keys = [*pd.read_parquet(table)["key"], "000009999"]
    with pytest.raises(ValueError, match="1 keys have no readable sample.*000009999"):
        open_squares(shards, keys, 16, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.npy"))
