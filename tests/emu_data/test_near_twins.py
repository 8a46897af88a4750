"""Re-posts are found, other pictures are not joined, clusters have a centre, in any order of the rows."""

import base64
from collections.abc import Sequence

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from benchmarks._reposts import KINDS, as_jpeg
from emu_data import near_twins
from emu_data.alike import VIEWS, similarity, unpack
from emu_data.near_twins import MIN_SIMILARITY, cluster_near_twins, near_duplicate_groups
from emu_data.samples import decode_rgb
from emu_data.signals.looks import describe_picture
from emu_data.sources.damage import DUPLICATE_KINDS, copy_nearly, encode_jpeg
from tests.emu_data.emoji import load_emoji
from tests.shards import draw_looks, draw_picture


def find_clusters(rows: pd.DataFrame, num_threads: int = 2) -> dict[str, str]:
    with duckdb.connect(config={"threads": num_threads}) as con:
        con.register("pictures", rows)
        cluster_near_twins(con, "pictures")
        return dict(con.sql("SELECT key, cluster FROM clusters").fetchall())


def make_rows(looks: Sequence[str | None], digests: Sequence[str | None] | None = None) -> pd.DataFrame:
    num = len(looks)
    rows = {"key": [f"{i:05d}" for i in range(num)], "digest": digests or [f"d{i}" for i in range(num)], "looks": looks}
    return pd.DataFrame(rows).astype({"digest": "string", "looks": "string"})


def looks_of(*images: Image.Image) -> list[str | None]:
    return [describe_picture(image)[0] for image in images]


def best_similarity(one: str, other: str) -> float:
    """Of all ways to lay one picture onto the other."""
    sides = [unpack([base64.b64decode(looks)])[0] for looks in (one, other)]
    ways = [
        (i, j, mirrored, box, turned)
        for turned in (False, True)
        for i in range(len(sides[turned].grey))
        for j in range(len(sides[not turned].grey))
        for mirrored in (False, True)
        for box in VIEWS
    ]
    found = []
    for turned in (False, True):
        those = [way for way in ways if way[4] is turned]
        first = sides[turned].take(np.array([way[0] for way in those]))
        second = sides[not turned].take(np.array([way[1] for way in those]))
        second = second.mirrored_where(np.array([way[2] for way in those]))
        found.append(similarity(first, second, np.array([way[3] for way in those]))[0].max())
    return max(found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_repost_is_found(kind: str) -> None:
    originals = [draw_picture(seed, 256) for seed in range(12)]
    copies = [as_jpeg(KINDS[kind](image, np.random.default_rng(i))) for i, image in enumerate(originals)]
    found = find_clusters(make_rows(looks_of(*originals, *copies)))
    num_found = sum(found.get(f"{i:05d}", 0) == found.get(f"{i + 12:05d}", 1) for i in range(12))
    assert num_found >= (9 if kind == "cropped by 8 %" else 11), num_found
    assert len(set(found.values())) == num_found  # none is joined with another


def grow(seed: int, step: int) -> Image.Image:
    """One picture that becomes another one in small steps."""
    return Image.blend(draw_picture(seed), draw_picture(seed + 1), step / 20)


@given(
    seeds=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.booleans()), min_size=1, max_size=25),
    order=st.integers(0, 1000),
)
@settings(max_examples=15, deadline=None)
def test_every_member_is_a_twin_of_its_centre_and_the_order_of_rows_changes_nothing(seeds, order) -> None:
    images = [grow(10 * seed, step) for seed, step, _ in seeds]
    images = [
        im.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if s[2] else im for im, s in zip(images, seeds, strict=True)
    ]
    rows = make_rows(looks_of(*images))
    found = find_clusters(rows)
    looks = dict(zip(rows["key"], rows["looks"], strict=True))
    for key, centre in found.items():
        assert looks[key] == looks[centre] or best_similarity(looks[key], looks[centre]) >= MIN_SIMILARITY
    assert find_clusters(rows.sample(frac=1, random_state=order), num_threads=1) == found


def draw_card(number: int) -> Image.Image:
    """A playing card: one of four suits, all black, and up to five of it."""
    card = Image.new("RGB", (200, 280), "white")
    draw = ImageDraw.Draw(card)
    draw.rounded_rectangle((4, 4, 195, 275), 14, outline="black", width=3)
    for x, y in [(100, 140), (60, 60), (140, 220), (140, 60), (60, 220)][: 1 + number // 4]:
        upside = -1 if number % 4 == 1 else 1  # of a heart, which a spade is upside down
        if number % 4 < 2:
            for side in (-1, 1):
                draw.ellipse(
                    (x + 10 * side - 11, y - 9 * upside - 11, x + 10 * side + 11, y - 9 * upside + 11), "black"
                )
            draw.polygon([(x - 20, y - 4 * upside), (x + 20, y - 4 * upside), (x, y + 24 * upside)], "black")
        elif number % 4 == 2:
            draw.polygon([(x, y - 26), (x + 18, y), (x, y + 26), (x - 18, y)], "black")
        else:
            for dx, dy in ((0, -13), (-13, 5), (13, 5)):
                draw.ellipse((x + dx - 11, y + dy - 11, x + dx + 11, y + dy + 11), "black")
        if number % 2:
            draw.polygon([(x, y), (x + 9, y + 26), (x - 9, y + 26)], "black")
    return card


def draw_folder(number: int) -> Image.Image:
    """An icon of a folder, a sign of its own on its front."""
    folder = Image.new("RGB", (160, 160), "white")
    draw = ImageDraw.Draw(folder)
    draw.polygon([(10, 40), (60, 40), (72, 54), (150, 54), (150, 140), (10, 140)], fill=(90, 140, 210), outline="black")
    draw.rectangle((10, 66, 150, 140), fill=(120, 170, 235), outline="black", width=2)
    for x, y in np.random.default_rng(number).integers(0, 30, (5, 2)):
        draw.rectangle((65 + x, 85 + y, 73 + x, 93 + y), fill="white", outline="black")
    return folder


def draw_star(number: int) -> Image.Image:
    """A star of lines: number of points and how deep they are."""
    star = Image.new("RGB", (400, 400), "white")
    points, depth = 9 + 2 * (number % 5), 0.3 + 0.12 * (number // 5)
    angles = np.pi * np.arange(2 * points) / points
    radius = np.where(np.arange(2 * points) % 2, depth, 1.0) * 180
    corners = np.stack([200 + radius * np.sin(angles), 200 - radius * np.cos(angles)], axis=1)
    ImageDraw.Draw(star).polygon([tuple(corner) for corner in corners.tolist()], outline="black", width=3)
    return star.resize((200, 200), Image.Resampling.LANCZOS)


def draw_road_sign(number: int) -> Image.Image:
    """A red triangle with a figure in it."""
    sign = Image.new("RGB", (220, 200), "white")
    draw = ImageDraw.Draw(sign)
    draw.polygon([(110, 10), (210, 185), (10, 185)], fill=(220, 20, 30))
    draw.polygon([(110, 45), (182, 170), (38, 170)], fill="white")
    joints = np.random.default_rng(number).integers(0, 60, (5, 2)) + [80, 100]
    draw.line([tuple(joint) for joint in joints.tolist()], fill="black", width=7, joint="curve")
    return sign


FAMILIES = (draw_card, draw_folder, draw_star, draw_road_sign)


def test_drawings_of_one_family_are_no_twins_and_their_reposts_are_found() -> None:
    """But for screenshots: of a drawing on a white page they are lost at 32 cells, where its core is not found. At most
    1 % of the re-posts are joined with another member: a spade and a club are nearly one when they are cropped."""
    kinds = [make for kind, make in KINDS.items() if kind != "in a screenshot"]
    num_found = num_wrong = 0
    for draw in FAMILIES:
        members = [draw(number) for number in range(8)]
        assert find_clusters(make_rows(looks_of(*members))) == {}
        for make in kinds:
            copies = [as_jpeg(make(image, np.random.default_rng(i))) for i, image in enumerate(members)]
            found = find_clusters(make_rows(looks_of(*members, *copies)))
            num_found += sum(found.get(f"{i:05d}", "no") == found.get(f"{i + 8:05d}", "none") for i in range(8))
            num_wrong += len({centre for key, centre in found.items() if int(key) % 8 != int(centre) % 8})
    assert num_wrong <= 0.01 * 8 * len(kinds) * len(FAMILIES), num_wrong
    assert num_found >= 0.9 * 8 * len(kinds) * len(FAMILIES), num_found


def test_a_family_meets_a_few_and_a_picture_posted_often_meets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for four pairs a picture, of 30 that are alike and differ close by few are compared, of 30 copies all
    that one cluster needs."""
    monkeypatch.setattr(near_twins, "NEAREST", 4)
    num_compared = 0

    def count(con: duckdb.DuckDBPyConnection, pairs: pd.DataFrame) -> np.ndarray:
        nonlocal num_compared
        num_compared += len(pairs)
        return compare(con, pairs)

    compare = near_twins._compare_close
    monkeypatch.setattr(near_twins, "_compare_close", count)
    family = looks_of(*(draw_folder(number) for number in range(30)))
    assert find_clusters(make_rows(family)) == {}
    assert 30 <= num_compared <= 4 * 30  # of 435 pairs
    image = draw_folder(0)
    copies = [as_jpeg(ImageEnhance.Brightness(image).enhance(0.85 + 0.01 * i), 60 + i) for i in range(30)]
    found = find_clusters(make_rows(looks_of(*copies)))
    assert len(found) == 30 and len(set(found.values())) == 1


def test_a_chain_is_no_cluster() -> None:
    """Each step is like the next one, the ends are two pictures."""
    looks = [look for look in looks_of(*(grow(0, step) for step in range(21))) if look]
    found = find_clusters(make_rows(looks))
    assert len(found) > 15 and found.get("00000", "alone") != found.get("00020", "alone too")
    groups = near_duplicate_groups(
        make_rows(looks, [f"{i:02d}" for i in range(21)]).rename(columns={"digest": "sha256"})
    )
    assert set(groups) == {"00"}  # folds: neighbours must not be on both sides


def test_a_blank_page_is_nobodys_twin_but_of_its_bytes() -> None:
    pages = [Image.new("RGB", (200, 260), (level, level, level)) for level in range(200, 256, 5)]
    lines = []
    for i in range(20):
        page = Image.new("RGB", (200, 260), "white")
        ImageDraw.Draw(page).line([tuple(p) for p in np.random.default_rng(i).integers(10, 190, (6, 2))], "black", 2)
        lines.append(page)
    looks = looks_of(*pages, *lines)
    assert looks[: len(pages)] == [None] * len(pages)
    assert find_clusters(make_rows(looks)) == {}
    digests = ["same", "same", *(f"d{i}" for i in range(len(looks) - 2))]
    assert find_clusters(make_rows(looks, digests)) == {"00000": "00000", "00001": "00000"}


def test_equal_bytes_are_twins_whatever_their_looks_and_missing_digests_are_not() -> None:
    rows = make_rows(draw_looks(4), ["same", "same", None, None])
    assert set(find_clusters(rows)) == {"00000", "00001"}
    assert find_clusters(make_rows([None, None], [None, None])) == {}


def test_other_colours_are_another_picture_and_grey_ones_are_not() -> None:
    picture = draw_picture(3)
    red, green, blue = picture.split()
    swapped, grey = Image.merge("RGB", (blue, green, red)), picture.convert("L").convert("RGB")
    assert find_clusters(make_rows(looks_of(picture, swapped))) == {}
    assert len(find_clusters(make_rows(looks_of(picture, grey)))) == 2


def test_a_key_that_many_share_stays_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """With next to no room for a key every look is compared with its neighbours alone; copies are still found."""
    monkeypatch.setattr(near_twins, "CROWD", 1)
    monkeypatch.setattr(near_twins, "WINDOW", 4)
    originals = [draw_picture(seed) for seed in range(30)]
    copies = [as_jpeg(image, 60) for image in originals]
    assert len(set(find_clusters(make_rows(looks_of(*originals, *copies))).values())) == 30


def test_groups_for_folds_are_named_by_their_smallest_digest() -> None:
    one, two = draw_looks(2)
    rows = make_rows([one, one, two, None], ["b", "a", "z", "y"]).rename(columns={"digest": "sha256"})
    rows.index = pd.Index([9, 8, 7, 6])
    assert near_duplicate_groups(rows).to_dict() == {9: "a", 8: "a", 7: "z", 6: "y"}
    assert len(near_duplicate_groups(rows.iloc[:0])) == 0


@pytest.mark.parametrize("kind", [kind for kind in DUPLICATE_KINDS if kind != "exact"])
def test_copies_of_drawings_are_found_and_different_drawings_are_not(kind: str) -> None:
    rng = np.random.default_rng(0)
    drawings = [Image.fromarray(array) for style in load_emoji(128).values() for array in style[::2]]
    copies = [
        decode_rgb(encode_jpeg(image, 85)) if kind == "reencoded" else copy_nearly(image, kind, rng)
        for image in drawings
    ]
    found = find_clusters(make_rows(looks_of(*drawings, *copies)))
    num = len(drawings)
    num_found = sum(found.get(f"{i:05d}", 0) == found.get(f"{i + num:05d}", 1) for i in range(num))
    assert num_found >= 0.95 * num, num_found
    num_joined = num - len(set(found.values()))
    assert num_joined <= 0.03 * num, num_joined


def draw_ring(inner: float) -> Image.Image:
    """A wheel of thin lines on white, each touching the inner circle: its darkness there is all that tells it."""
    ring = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(ring)
    half = np.arccos(inner)
    for angle in np.linspace(0, 2 * np.pi, 90, endpoint=False):
        ends = [(200 + 185 * np.cos(angle + s * half), 200 + 185 * np.sin(angle + s * half)) for s in (-1, 1)]
        draw.line(ends, fill=(120, 120, 120), width=2)
    return ring.resize((100, 100), Image.Resampling.LANCZOS)


def test_rings_of_thin_lines_that_differ_in_darkness_alone_are_no_twins() -> None:
    ring, lighter = draw_ring(0.85), Image.blend(draw_ring(0.85), Image.new("RGB", (100, 100), "white"), 0.15)
    copy = as_jpeg(ring, 85)
    assert set(find_clusters(make_rows(looks_of(ring, lighter, copy)))) == {"00000", "00002"}
