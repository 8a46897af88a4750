"""Every near-twin is found, nothing else is joined, in any order of the rows."""

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emu_data.near_twins import WINDOW, cluster_near_twins, near_duplicate_groups
from emu_data.records import decode_rgb
from emu_data.signals.phash import perceptual_hash, thumbnail
from emu_data.sources.damage import DUPLICATE_KINDS, copy_nearly, encode_jpeg
from tests.emu_data.emoji import load_emoji

GREY = "80" * 48


def find_clusters(rows: pd.DataFrame, max_distance: int = 3, num_threads: int = 2) -> dict[str, str]:
    with duckdb.connect(config={"threads": num_threads}) as con:
        con.register("pictures", rows)
        cluster_near_twins(con, "pictures", max_distance)
        return dict(con.sql("SELECT key, cluster FROM clusters").fetchall())


def make_rows(hashes: list[int], thumbnails: list[str] | None = None, digests: list[str | None] | None = None):
    return pd.DataFrame(
        {
            "key": [f"{i:05d}" for i in range(len(hashes))],
            "digest": pd.Series(digests or [f"d{i}" for i in range(len(hashes))], dtype="string"),
            "phash": [f"{value:016x}" for value in hashes],
            "thumbnail": thumbnails or [GREY] * len(hashes),
        }
    )


def plain_clusters(hashes: list[int], max_distance: int) -> dict[str, str]:
    """All pairs, then flooding: what the bands must come to."""
    names = list(range(len(hashes)))
    for _ in hashes:
        for i, x in enumerate(hashes):
            for j, y in enumerate(hashes):
                if (x ^ y).bit_count() <= max_distance:
                    names[i] = names[j] = min(names[i], names[j])
    return {f"{i:05d}": f"{name:05d}" for i, name in enumerate(names) if names.count(name) > 1}


@given(
    seeds=st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=5)), min_size=1, max_size=12),
    max_distance=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=20, deadline=None)
def test_the_bands_find_what_all_pairs_find_in_any_order(seeds, max_distance, order) -> None:
    bases = [int.from_bytes(np.random.default_rng(i).bytes(8), "big") for i in range(4)]
    hashes = [bases[base] ^ sum(1 << bit for bit in bits) for base, bits in seeds]
    rows = make_rows(hashes)
    expected = plain_clusters(hashes, max_distance)
    assert find_clusters(rows, max_distance) == expected
    shuffled = rows.sample(frac=1, random_state=order.randrange(1000))
    assert find_clusters(shuffled, max_distance, num_threads=1) == expected


def test_equal_bytes_are_twins_whatever_their_hashes_and_missing_digests_are_not() -> None:
    rows = make_rows([0, 2**64 - 1, 2**40 - 1, 2**24 - 1], digests=["same", "same", None, None])
    assert find_clusters(rows) == {"00000": "00000", "00001": "00000"}


def test_rows_without_a_hash_take_no_part() -> None:
    rows = make_rows([5, 5, 5])
    rows.loc[1, ["phash", "thumbnail"]] = None
    assert find_clusters(rows) == {"00000": "00000", "00002": "00000"}


def test_equal_hashes_of_other_colours_are_two_pictures_and_darker_ones_are_one() -> None:
    red, blue = "ff0000" * 16, "0000ff" * 16
    darker = "e60000" * 16
    assert find_clusters(make_rows([7, 7, 6], [red, blue, darker])) == {"00000": "00000", "00002": "00000"}
    black, white = "00" * 48, "ff" * 48
    assert find_clusters(make_rows([0, 0], [black, white])) == {}


def test_a_hash_with_many_pictures_stays_linear_and_finds_neighbours() -> None:
    """Blank pages of every grey: each is near to the next one, so all are one cluster; and the pairs are bounded."""
    greys = [f"{level:02x}" * 48 for level in range(100, 250)]
    assert len(greys) > 2 * WINDOW
    found = find_clusters(make_rows([0] * len(greys), greys))
    assert len(found) == len(greys) and set(found.values()) == {"00000"}


def test_groups_for_folds_are_named_by_their_smallest_digest() -> None:
    rows = make_rows([1, 3, 2**63, 1 << 40], digests=["b", "a", "z", "y"]).rename(columns={"digest": "sha256"})
    rows["phash"] = [f"{value:016x}" for value in (1, 3, 2**63 - 1, 0xFFFF << 40)]
    rows.index = pd.Index([9, 8, 7, 6])
    groups = near_duplicate_groups(rows)
    assert groups.to_dict() == {9: "a", 8: "a", 7: "z", 6: "y"}


@pytest.mark.parametrize("kind", [kind for kind in DUPLICATE_KINDS if kind != "exact"])
def test_copies_of_drawings_are_found_and_different_drawings_are_not(kind: str) -> None:
    rng = np.random.default_rng(0)
    drawings = [Image.fromarray(array) for style in load_emoji(128).values() for array in style]
    copies = [
        decode_rgb(encode_jpeg(image, 85)) if kind == "reencoded" else copy_nearly(image, kind, rng)
        for image in drawings
    ]
    both = [*drawings, *copies]
    rows = make_rows([int(perceptual_hash(image), 16) for image in both], [thumbnail(image) for image in both])
    found = find_clusters(rows)
    num = len(drawings)
    assert all(found.get(f"{i:05d}") == found.get(f"{i + num:05d}") is not None for i in range(num))
    num_joined = num - len(set(found.values()))
    assert num_joined <= 0.02 * num, num_joined
