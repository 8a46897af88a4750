"""Each signal on pictures whose answer is known."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from emu_data.records import Decoded
from emu_data.signals import Signal
from emu_data.signals.aesthetics import AestheticsSignal
from emu_data.signals.caption import CaptionSignal
from emu_data.signals.concept import ConceptSignal
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.phash import PhashSignal
from emu_data.signals.safety import SafetySignal
from emu_data.signals.text_area import TextAreaSignal, letterbox

CONCEPTS = (
    ("food", "a meal, a fruit or a vegetable"),
    ("vehicle", "a car, a train or a boat"),
    ("animal", "an animal"),
)


def record(image: Image.Image, caption: str = "a picture", **meta: object) -> Decoded:
    return Decoded("000000000", caption, meta, image, 1234, "ab" * 32)


def draw_shapes(seed: int, side: int = 128) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y, w, h = rng.integers(0, side // 2, 4)
        draw.ellipse((x, y, x + w + 8, y + h + 8), fill=tuple(rng.integers(0, 255, 3)))
    return image


def write_words(image: Image.Image, words: str) -> Image.Image:
    image = image.copy()
    font = ImageFont.load_default(size=image.height / 6)
    ImageDraw.Draw(image).text((image.width / 10, image.height / 3), words, fill="black", font=font)
    return image


def hamming(one: str, two: str) -> int:
    return (int(one, 16) ^ int(two, 16)).bit_count()


def test_geometry() -> None:
    values = GeometrySignal().measure([record(Image.new("RGB", size)) for size in ((30, 90), (64, 64))])
    assert values == {"min_side": [30, 64], "aspect": [3.0, 1.0], "num_bytes": [1234, 1234]}


def test_caption() -> None:
    image = Image.new("RGB", (8, 8))
    values = CaptionSignal().measure([record(image, text) for text in (" a red  apple ", "", "1234 !!")])
    assert values["num_words"] == [3, 0, 2]
    assert values["num_characters"] == [12, 0, 7]
    assert values["letter_share"] == [pytest.approx(9 / 12), 0, 0]


def test_safety_is_the_corpus_s_own_column() -> None:
    image = Image.new("RGB", (8, 8))
    assert SafetySignal().measure([record(image, punsafe=0.97), record(image)]) == {"unsafe": [0.97, None]}
    assert SafetySignal("nsfw").measure([record(image, nsfw=1)]) == {"unsafe": [1.0]}


def test_perceptual_hash_is_near_for_copies_and_far_for_others() -> None:
    pictures = [draw_shapes(seed) for seed in range(6)]
    hashes = PhashSignal().measure([record(picture) for picture in pictures])["phash"]
    for picture, own in zip(pictures, hashes, strict=True):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        copies = [
            Image.open(buffer).convert("RGB"),
            picture.resize((96, 96)),
            ImageEnhance.Brightness(picture).enhance(0.92),
        ]
        for value in PhashSignal().measure([record(copy) for copy in copies])["phash"]:
            assert hamming(own, value) <= 3
    pairs = [hamming(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(pairs) > 6


def test_richness_rises_with_colour_and_contrast() -> None:
    picture = draw_shapes(1)
    pale = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.7)
    grey = picture.convert("L").convert("RGB")
    values = AestheticsSignal().measure([record(image) for image in (picture, pale, grey)])
    rich, pale_richness, grey_richness = values["richness"]
    assert rich > max(pale_richness, grey_richness)
    assert values["colourfulness"][2] == 0


@pytest.fixture(scope="module")
def measure_text():
    return TextAreaSignal().load()


def test_text_area_sees_words_and_not_things(measure_text) -> None:
    things = [draw_shapes(seed) for seed in range(4)]
    values = measure_text([record(write_words(image, "CLICK HERE")) for image in things] + [record(i) for i in things])
    assert min(values["text_area"][:4]) > 0.05
    assert max(values["text_area"][4:]) < 0.02
    assert min(values["num_text_boxes"][:4]) >= 1
    assert all(0 <= area <= 1 for area in values["text_area"])


def test_text_area_does_not_depend_on_size_or_neighbours(measure_text) -> None:
    small, large = (write_words(Image.new("RGB", (side, side), "white"), "NEWS TODAY") for side in (128, 512))
    wide = Image.new("RGB", (256, 128), "white")
    wide.paste(small, (0, 0))
    together = measure_text([record(image) for image in (small, large, wide)])["text_area"]
    alone = [measure_text([record(image)])["text_area"][0] for image in (small, large, wide)]
    assert together == pytest.approx(alone, abs=1e-6)
    assert together[0] == pytest.approx(together[1], rel=0.25)
    assert 0 < together[2] < together[0]  # of the white that was added, and small letters are missed


def test_letterbox_keeps_the_aspect() -> None:
    square, size = letterbox(Image.new("RGB", (100, 50), "red"), 96)
    assert size == (96, 48)
    assert (square[:48] == (255, 0, 0)).all()
    assert (square[48:] == 255).all()
    with pytest.raises(ValueError, match="multiple of 32"):
        TextAreaSignal(canvas=100)


def test_concept_is_the_nearest_description() -> None:
    image = Image.new("RGB", (8, 8))
    captions = ["slice of pizza", "steam locomotive", "lion face", "bunch of grapes", "slice of pizza"]
    values = ConceptSignal(CONCEPTS).measure([record(image, caption) for caption in captions])
    assert values["concept"] == ["food", "vehicle", "animal", "food", "food"]
    assert all(0 < score <= 1 for score in values["concept_score"])


@pytest.mark.parametrize(
    ("signal", "changes"),
    [
        (TextAreaSignal(), {"canvas": 128}),
        (SafetySignal(), {"column": "nsfw"}),
        (ConceptSignal(CONCEPTS), {"descriptions": CONCEPTS[:2]}),
    ],
)
def test_version_follows_the_settings(signal: Signal, changes: dict) -> None:
    assert dataclasses.replace(signal).version == signal.version
    assert dataclasses.replace(signal, **changes).version != signal.version
