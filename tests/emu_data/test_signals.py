"""Each signal on pictures whose answer is known."""

import dataclasses
import inspect
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

import emu_data.signals
from emu_data.records import Sample, decode_rgb
from emu_data.signals import Record, Signal
from emu_data.signals.aesthetics import AestheticsSignal, fit_head, read_head
from emu_data.signals.alignment import AlignmentSignal
from emu_data.signals.caption import CaptionSignal, count_captions
from emu_data.signals.concept import ConceptSignal
from emu_data.signals.craft import letterbox
from emu_data.signals.embedding import Encoder
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.phash import PhashSignal
from emu_data.signals.popularity import PopularitySignal
from emu_data.signals.safety import SafetySignal
from emu_data.signals.text_area import TextAreaSignal
from emu_data.signals.text_probe import TextFeaturesSignal, fit_text_probe, text_features

CONCEPTS = (
    ("food", "a meal, a fruit or a vegetable"),
    ("vehicle", "a car, a train or a boat"),
    ("animal", "an animal"),
)


def record(image: Image.Image, caption: str = "a picture", **meta: object) -> Record:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Record(Sample("000000000", buffer.getvalue(), caption, meta))


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
    records = [record(Image.new("RGB", size)) for size in ((30, 90), (64, 64))]
    num_bytes = [len(one.data) for one in records]
    assert GeometrySignal().measure(records) == {"min_side": [30, 64], "aspect": [3.0, 1.0], "num_bytes": num_bytes}
    header = Record(Sample("000000000", records[0].data[:-30], "", {}))  # no pixel of it could be decoded
    assert GeometrySignal().measure([header])["min_side"] == [30]


def test_caption() -> None:
    image = Image.new("RGB", (8, 8))
    values = CaptionSignal().measure([record(image, text) for text in (" a red  apple ", "", "1234 !!")])
    assert values["num_words"] == [3, 0, 2]
    assert values["num_characters"] == [12, 0, 7]
    assert values["letter_share"] == [pytest.approx(9 / 12), 0, 0]


def test_captions_are_counted_over_the_whole_corpus(tmp_path: Path) -> None:
    captions = ["image not found"] * 7 + ["rare"] * 4 + [f"caption {i}" for i in range(40)] + [None]
    for shard in range(2):
        pd.DataFrame({"caption": captions[shard::2]}).to_parquet(tmp_path / f"0000{shard}.parquet")
    counts, sample = tmp_path / "out" / "counts.parquet", tmp_path / "out" / "sample.parquet"
    count_captions(tmp_path, counts, sample, 10)
    assert pd.read_parquet(counts).to_dict("list") == {"caption": ["image not found"], "num_occurrences": [7]}
    drawn = pd.read_parquet(sample)["caption"].tolist()
    assert len(drawn) == 10 and drawn == sorted(drawn) and set(drawn) <= set(captions)
    assert [file.name for file in sorted(counts.parent.iterdir())] == ["counts.parquet", "sample.parquet"]
    values = CaptionSignal(str(counts)).measure([record(Image.new("RGB", (8, 8)), c) for c in ("image not found", "x")])
    assert values["num_occurrences"] == [7, None]
    assert CaptionSignal(str(counts)).version != CaptionSignal().version


def test_safety_gates_the_worse_of_detector_and_corpus() -> None:
    image = Image.new("RGB", (8, 8))
    given = SafetySignal(detector="none").measure([record(image, punsafe=0.97), record(image, punsafe="x")])
    assert given == {"unsafe": [0.97, None], "unsafe_detected": [None, None], "unsafe_given": [0.97, None]}
    assert SafetySignal("nsfw", "none").measure([record(image, nsfw=1)])["unsafe"] == [1.0]
    both = SafetySignal().measure([record(image, punsafe=0.97), record(image)])
    assert both["unsafe"] == [0.97, both["unsafe_detected"][1]]
    with pytest.raises(ValueError, match="needs an encoder"):
        SafetySignal(detector="zero_shot")


def test_ordinary_photographs_are_safe() -> None:
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "coffee", "chelsea", "rocket", "moon", "camera")
    pictures = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in names]
    pictures += [Image.fromarray(image) for image in load_sample_images().images]
    values = SafetySignal().measure([record(picture) for picture in pictures])
    assert max(values["unsafe"]) < 0.2
    assert values["unsafe"] == values["unsafe_detected"]


def test_popularity_is_any_column_of_numbers() -> None:
    image = Image.new("RGB", (8, 8))
    metas: list[dict] = [{"likes": 12}, {"likes": "7"}, {"likes": None}, {"likes": "many"}, {}, {"likes": float("nan")}]
    values = PopularitySignal("likes").measure([record(image, **meta) for meta in metas])
    assert values == {"popularity": [12.0, 7.0, None, None, None, None]}


def test_one_decode_serves_all_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr("emu_data.signals.decode_rgb", lambda data: decoded.append(1) or decode_rgb(data))
    one = record(Image.new("RGB", (3000, 1500), "red"))
    for signal in (GeometrySignal(), CaptionSignal()):
        signal.measure([one])
    assert decoded == []
    for signal in (PhashSignal(), AestheticsSignal(), SafetySignal(detector="none")):
        signal.measure([one])
    assert decoded == [1]
    assert one.image.size == (1000, 500) and one.size == (3000, 1500)


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
    assert values["aesthetics"] == values["richness"]


def test_head_learns_from_votes_and_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = vectors @ np.arange(16) / 20 + 0.5 + rng.normal(0, 0.05, 200)
    assert fit_head(vectors, scores, tmp_path / "head.safetensors") > 0.9
    weight, bias = read_head(tmp_path / "head.safetensors")
    assert np.corrcoef(vectors @ weight + bias, scores)[0, 1] > 0.95
    assert abs(fit_head(vectors, rng.permutation(scores), tmp_path / "noise.safetensors")) < 0.2
    with pytest.raises(ValueError, match="too few"):
        fit_head(vectors, np.ones(200), tmp_path / "same.safetensors")


def test_heads_of_linear_layers_are_one_map(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layers = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.Dropout(0.2), torch.nn.Linear(5, 1)).eval()
    torch.save({f"layers.{name}": value for name, value in layers.state_dict().items()}, tmp_path / "head.pth")
    weight, bias = read_head(tmp_path / "head.pth")
    x = torch.randn(10, 8)
    assert np.allclose(x.numpy() @ weight + bias, layers(x).detach().numpy()[:, 0], atol=1e-5)
    torch.save({"conv.weight": torch.zeros(3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no chain of linear layers"):
        read_head(tmp_path / "other.pth")


@pytest.fixture(scope="module")
def measure_text():
    return TextAreaSignal().load()


def test_text_area_sees_words_and_not_things(measure_text) -> None:
    things = [draw_shapes(seed) for seed in range(4)]
    values = measure_text([record(write_words(image, "CLICK HERE")) for image in things] + [record(i) for i in things])
    assert min(values["text_area"][:4]) > 0.05
    assert max(values["text_area"][4:]) < 0.02
    assert min(values["num_text_boxes"][:4]) >= 1
    for largest, area in zip(values["largest_text_box"], values["text_area"], strict=True):
        assert 0 <= largest <= area <= 1
    assert values["num_words_in_picture"] == [None] * 8


def test_words_are_read_where_they_are_asked_for() -> None:
    ground = Image.new("RGB", (384, 384), "white")
    pictures = [write_words(ground, words) for words in ("ONE", "CLICK HERE")] + [draw_shapes(0, 384)]
    records = [record(picture) for picture in pictures]
    values = TextAreaSignal(192, words_between=(0.005, 0.5)).measure(records)
    assert values["num_words_in_picture"] == [1, 2, None]
    assert TextAreaSignal(192, words_between=(0.5, 1.0)).measure(records)["num_words_in_picture"] == [None] * 3


def test_large_canvas_is_for_what_the_half_one_leaves_open() -> None:
    large, small = (Image.new("RGB", (400, 400), "white") for _ in range(2))
    font = ImageFont.load_default(size=90)
    ImageDraw.Draw(large).text((10, 100), "SALE NOW", fill="black", font=font)
    ImageDraw.Draw(small).text((10, 100), "a few words", fill="black", font=ImageFont.load_default(size=24))
    thumbnail = small.resize((150, 150))
    values = TextAreaSignal(320).measure([record(image) for image in (large, small, draw_shapes(0, 400), thumbnail)])
    assert values["text_canvas"] == [160, 320, 160, 160]
    assert values["text_area"][0] > 0.15 > values["text_area"][1] > 0.01


def test_probe_spares_what_is_surely_clean_and_misses_no_text(measure_text) -> None:
    rng = np.random.default_rng(0)
    sides = [int(rng.integers(96, 300)) for _ in range(160)]
    pictures = [draw_shapes(seed, side) for seed, side in enumerate(sides)]
    pictures[::2] = [write_words(picture, "CLICK HERE") for picture in pictures[::2]]
    features = np.stack([text_features(picture) for picture in pictures])
    area = np.where(np.arange(160) % 2 == 0, 0.1, 0.0)  # as CRAFT would say
    probe, told = fit_text_probe(features[:120], area[:120])
    assert probe is not None and "60 pictures with text" in told
    scores = np.array([probe.score(picture) for picture in pictures[120:]])
    assert (scores[::2] >= probe.threshold).mean() >= 0.95
    assert (scores[1::2] < probe.threshold).mean() >= 0.5
    values = TextAreaSignal(probe=probe).measure([record(picture) for picture in pictures[120:126]])
    skipped = [score < probe.threshold for score in scores[:6]]
    assert [area is None for area in values["text_area"]] == skipped and any(skipped)
    assert values["text_probe"] == pytest.approx(scores[:6].tolist())


@pytest.mark.parametrize(("num_text", "learnable"), [(10, True), (60, False)])
def test_no_probe_where_the_pilot_does_not_carry_it(num_text: int, learnable: bool) -> None:
    rng = np.random.default_rng(0)
    area = np.where(np.arange(200) < num_text, 0.2, 0.0)
    features = rng.normal(size=(200, 110)) + (5 * (area > 0)[:, None] if learnable else 0)
    probe, told = fit_text_probe(features, area)
    assert probe is None
    assert "all go to CRAFT" in told


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


def every_kind_of_signal() -> list[Signal]:
    """One of each class, and of each way in which one says what measured it."""
    encoder = Encoder("ViT-B-32/openai")
    return [
        GeometrySignal(),
        CaptionSignal(),
        CaptionSignal(counts="counts.parquet"),
        PhashSignal(),
        PopularitySignal("likes"),
        SafetySignal(),
        SafetySignal(detector="none"),
        SafetySignal(detector="zero_shot", encoder=encoder),
        AestheticsSignal(),
        AestheticsSignal(head="weights/head.safetensors", encoder=encoder),
        AlignmentSignal("ViT-B-32/openai", ("a cat",)),
        ConceptSignal(CONCEPTS),
        ConceptSignal(CONCEPTS, encoder),
        TextAreaSignal(),
        TextAreaSignal(words_between=(0.01, 0.2)),
        TextFeaturesSignal(),
    ]


def test_what_measured_it_is_written_for_people() -> None:
    """A report shows it: a sentence's worth of words, not a docstring and not a Python value."""
    signals = every_kind_of_signal()
    package = Path(emu_data.signals.__file__).parent
    defined = {name for path in package.glob("*.py") for name in re.findall(r"class (\w+)\(Signal\)", path.read_text())}
    assert {type(signal).__name__ for signal in signals} == defined
    for signal in signals:
        told = signal.describe()
        assert not set("`'\"[]{}\n") & set(told.replace("'s ", "")) and "None" not in told and "(0." not in told, told
        assert told not in inspect.getsource(type(signal)).split('"""')[1]
        assert len(told.split()) > 1 and not told.endswith(".")
