"""Each signal on pictures for which the answer is known."""

import dataclasses
import inspect
import io
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

import emu_data.signals
from emu_data.ledger import decide
from emu_data.samples import Sample, decode_rgb
from emu_data.signals import SIDE, LazySample, Signal, text_probe
from emu_data.signals.aesthetics import AestheticsSignal, fit_head, read_head
from emu_data.signals.alignment import AlignmentSignal
from emu_data.signals.caption import CaptionSignal, count_captions
from emu_data.signals.concept import ConceptSignal
from emu_data.signals.craft import letterbox
from emu_data.signals.embedding import Encoder
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.looks import MIN_DETAIL, LooksSignal
from emu_data.signals.networks import run_batches
from emu_data.signals.popularity import PopularitySignal
from emu_data.signals.recogniser import Recogniser, load_recogniser
from emu_data.signals.safety import SafetySignal
from emu_data.signals.text_area import TextAreaSignal
from emu_data.sources.damage import encode_jpeg

ROOT = Path(__file__).parents[2]
CONCEPTS = (
    ("food", "a meal, a fruit or a vegetable"),
    ("vehicle", "a car, a train or a boat"),
    ("animal", "an animal"),
)


def record(image: Image.Image, caption: str = "a picture", **meta: object) -> LazySample:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return LazySample(Sample("000000000", buffer.getvalue(), caption, meta))


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


def test_geometry() -> None:
    records = [record(Image.new("RGB", size)) for size in ((30, 90), (64, 64))]
    num_bytes = [len(one.data) for one in records]
    assert GeometrySignal().measure(records) == {"min_side": [30, 64], "aspect": [3.0, 1.0], "num_bytes": num_bytes}
    header = LazySample(Sample("000000000", records[0].data[:-30], "", {}))  # none of its pixels could be decoded
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


def test_safety_uses_the_worse_of_detector_and_corpus() -> None:
    image = Image.new("RGB", (8, 8))
    given = SafetySignal(detector="none").measure([record(image, punsafe=0.97), record(image, punsafe="x")])
    assert given == {"unsafe": [0.97, None], "unsafe_detected": [None, None], "unsafe_given": [0.97, None]}
    assert SafetySignal("nsfw", "none").measure([record(image, nsfw=1)])["unsafe"] == [1.0]
    both = SafetySignal().measure([record(image, punsafe=0.97), record(image)])
    assert both["unsafe"] == [0.97, both["unsafe_detected"][1]]
    with pytest.raises(ValueError, match="only zero_shot takes an encoder, and it needs one"):
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


def test_one_decoding_serves_all_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr("emu_data.signals.decode_rgb", lambda *a, **b: decoded.append(1) or decode_rgb(*a, **b))
    one = record(Image.new("RGB", (3000, 1500), "red"))
    for signal in (GeometrySignal(), CaptionSignal()):
        signal.measure([one])
    assert decoded == []
    for signal in (LooksSignal(), AestheticsSignal(), SafetySignal(detector="none")):
        signal.measure([one])
    assert decoded == [1]
    assert one.image.size == (750, 375) and one.size == (3000, 1500)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([1, SIDE, SIDE + 1, 2 * SIDE]))
@settings(max_examples=30, deadline=None)
def test_a_picture_is_seen_at_the_size_that_is_asked_for_and_no_larger_than_it_must(w: int, h: int, side: int) -> None:
    buffer = io.BytesIO()
    Image.new("L", (w, h)).save(buffer, "JPEG")
    seen = LazySample(Sample("0", buffer.getvalue(), "")).at(side).size
    assert max(seen) >= min(max(side, SIDE), w, h) and (max(seen) < 2 * max(side, SIDE))
    assert max(seen) >= max(side, SIDE) or seen == (w, h)
    assert seen[0] / seen[1] == pytest.approx(w / h, rel=1 / min(seen) + 1 / max(seen))


def test_what_a_signal_sees_does_not_depend_on_the_others() -> None:
    large = TextAreaSignal(canvas=2 * SIDE)
    assert large.side() == 2 * SIDE and all(signal.side() <= SIDE for signal in every_kind_of_signal())
    alone, after = (record(draw_shapes(0, side=3 * SIDE)) for _ in range(2))
    assert max(after.at(large.side()).size) > max(after.image.size)
    assert np.array_equal(np.asarray(alone.image), np.asarray(after.image))


def test_a_network_sees_batches_of_one_size_and_each_input_gets_its_own_row() -> None:
    sizes = []

    def forward(batch: np.ndarray) -> np.ndarray:
        sizes.append(batch.shape)
        return batch.sum(axis=(1, 2))[:, None]

    rng = np.random.default_rng(0)
    inputs = [rng.random((2, width)) for width in (3, 4, 3, 3, 4, 5)]
    found = run_batches(forward, inputs, 2, "cpu")
    assert [row.item() for row in found] == [one.sum() for one in inputs]
    assert sizes == [(2, 2, 3), (2, 2, 3), (2, 2, 4), (2, 2, 5)] and run_batches(forward, [], 2, "cpu") == []


def test_detail_is_what_is_drawn_and_a_blank_picture_has_no_look() -> None:
    page = Image.new("RGB", (300, 400), "white")
    speck, stripes, letter = page.copy(), page.copy(), page.copy()
    speck.paste("black", (100, 100, 110, 110))
    stripes.paste("navy", (0, 130, 300, 270))  # a flag; each line of it is plain, as are those of the letter T
    letter.paste("black", (0, 0, 300, 80))
    letter.paste("black", (100, 0, 200, 400))
    columns, rows = np.meshgrid(np.linspace(0, 1, 300), np.linspace(0, 1, 400))
    slanted, round_one = (columns + rows) * 120, np.hypot(columns - 0.5, rows - 0.5) * 300
    gradients = [Image.fromarray(values.astype(np.uint8)).convert("RGB") for values in (rows * 255, slanted, round_one)]
    grain = np.random.default_rng(0).normal(200, 2, (400, 300, 3)).clip(0, 255).astype(np.uint8)
    blank = [page, speck, *gradients, Image.fromarray(grain)]
    blank += [decode_rgb(encode_jpeg(image, 60)) for image in blank]
    values = LooksSignal().measure([record(image) for image in blank])
    assert max(values["detail"]) < MIN_DETAIL and values["looks"] == [None] * len(blank)
    drawn = [draw_shapes(seed) for seed in range(4)]
    line = page.copy()
    ImageDraw.Draw(line).ellipse((60, 80, 240, 320), outline="black", width=2)
    values = LooksSignal().measure([record(image) for image in (*drawn, line, stripes, letter)])
    assert min(values["detail"]) > 2 * MIN_DETAIL and None not in values["looks"]


def test_richness_rises_with_colour_and_contrast() -> None:
    picture = draw_shapes(1)
    pale = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.7)
    grey = picture.convert("L").convert("RGB")
    values = AestheticsSignal().measure([record(image) for image in (picture, pale, grey)])
    rich, pale_richness, grey_richness = values["richness"]
    assert rich > max(pale_richness, grey_richness)
    assert values["colourfulness"][2] == 0
    assert values["aesthetics"] == values["richness"]


def test_a_head_learns_from_votes_and_can_be_read_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = vectors @ np.arange(16) / 20 + 0.5 + rng.normal(0, 0.05, 200)
    assert fit_head(vectors, scores, tmp_path / "head.safetensors") > 0.9
    weight, bias = read_head(tmp_path / "head.safetensors")
    assert np.corrcoef(vectors @ weight + bias, scores)[0, 1] > 0.95
    assert abs(fit_head(vectors, rng.permutation(scores), tmp_path / "noise.safetensors")) < 0.2
    with pytest.raises(ValueError, match="collect more"):
        fit_head(vectors, np.ones(200), tmp_path / "same.safetensors")


def test_heads_of_linear_layers_are_one_map(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layers = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.Dropout(0.2), torch.nn.Linear(5, 1)).eval()
    torch.save({f"layers.{name}": value for name, value in layers.state_dict().items()}, tmp_path / "head.pth")
    weight, bias = read_head(tmp_path / "head.pth")
    x = torch.randn(10, 8)
    assert np.allclose(x.numpy() @ weight + bias, layers(x).detach().numpy()[:, 0], atol=1e-5)
    torch.save({"conv.weight": torch.zeros(3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a chain of linear layers"):
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


PAPER = yaml.safe_load((ROOT / "profiles" / "paper.yaml").read_text())["filter_ledger"]
MAX_TEXT_SCORE = PAPER["policy"]["max_text_score"]
PHRASES = ("LIMITED OFFER", "Καλημέρα", "Скидка дня", "გამარჯობა", "Բարեւ ձեզ", "مرحبا بكم")


def dejavu(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def lay(image: Image.Image, words: str, angle: int, share: float) -> Image.Image:
    """Words turned by `angle` degrees over a picture, letters `share` of its height high or so."""
    font = dejavu(image.height * share / 0.7)
    box = ImageDraw.Draw(image).multiline_textbbox((0, 0), words, font=font)
    ink = Image.new("L", (int(box[2] - box[0]) + 8, int(box[3] - box[1]) + 8))
    ImageDraw.Draw(ink).multiline_text((4 - box[0], 4 - box[1]), words, fill=255, font=font, align="center")
    ink = ink.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    image = image.copy()
    image.paste("black", ((image.width - ink.width) // 2, (image.height - ink.height) // 2), ink)
    return image


def test_text_is_found_in_any_script_and_direction() -> None:
    """What the recogniser cannot read (other scripts) and what is no oblong box (stacked letters) is text, too."""
    measure = TextAreaSignal(384).load()
    ground = draw_shapes(3, 512)
    written = [lay(ground, words, angle, 0.06) for words, angle in zip(PHRASES, (0, 90, 270, 20, 0, 90), strict=True)]
    stacked = [lay(ground, "\n".join(words[:6].replace(" ", "")), 0, 0.06) for words in PHRASES[1:4]]
    found = measure([record(picture) for picture in written + stacked])["text_score"]
    missed = [i for i, score in enumerate(found) if score is None or score <= MAX_TEXT_SCORE]
    assert not missed
    things = measure([record(draw_shapes(seed, 512)) for seed in range(4)])["text_score"]
    assert all(score is None or score <= MAX_TEXT_SCORE for score in things)


def test_a_reading_turns_unsure_into_text_and_nothing_into_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the recogniser says, text_score and what the detector alone decides stay; only more pictures go."""
    ground = draw_shapes(3, 384)
    pictures = [ground, lay(ground, "LIMITED OFFER", 0, 0.06), lay(ground, "مرحبا بكم", 0, 0.08)]
    records = [record(picture) for picture in pictures]
    policy = {"max_text_score": MAX_TEXT_SCORE, "max_text_reading": PAPER["policy"]["max_text_reading"]}
    unread = TextAreaSignal(384, probed=False).measure(records)
    assert unread["text_reading"] == [None] * 3

    def gated(values: dict[str, list], of: dict[str, float]) -> list[bool]:
        rows = pd.DataFrame({column: values[column] for column in ("text_score", "text_reading")})
        return list(decide(rows.assign(status="success", error=None), of)["first_failed_gate"] == "text_area")

    detected = gated(unread, policy)
    for readings in ([0.0] * 3, [1.0] * 3, [0.0, 1.0, 0.0]):
        answers = iter(readings)
        monkeypatch.setattr(Recogniser, "evidence", lambda *_, answers=answers: next(answers))
        values = TextAreaSignal(384, probed=False, scores_read=(0.0, 1.0)).measure(records)
        assert values["text_reading"] == readings
        assert values["text_score"] == unread["text_score"]
        assert gated(values, policy) == [a or b > 0.9 for a, b in zip(detected, readings, strict=True)]
    monkeypatch.undo()
    # Between the two thresholds a word in Latin letters decides, here for a detector that is asked to be surer than it
    # can be; the Arabic ones, which cannot be read, are left to the detector.
    values = TextAreaSignal(384, probed=False, scores_read=(0.1, 1.0)).measure(records)
    assert gated(values, policy | {"max_text_score": 1.0}) == [False, True, False]
    assert gated(values, policy) == [False, True, True]


def test_no_reading_makes_the_gate_milder() -> None:
    rng = np.random.default_rng(0)
    scores, readings = rng.uniform(0, 1, (2, 400))
    rows = pd.DataFrame({"text_score": scores, "text_reading": np.where(rng.random(400) < 0.3, np.nan, readings)})
    rows = rows.astype("Float64").assign(status="success", error=None)
    for max_score, max_reading in rng.uniform(0, 1, (4, 2)).tolist():
        alone = decide(rows, {"max_text_score": max_score})["kept"]
        both = decide(rows, {"max_text_score": max_score, "max_text_reading": max_reading})["kept"]
        assert (both == (alone & ~(rows["text_reading"] > max_reading).fillna(False).astype(bool))).all()


def test_words_along_a_side_are_read() -> None:
    upright = lay(Image.new("RGB", (300, 300), "white"), "SUBSCRIBE", 0, 0.1)
    for angle in (0, 90, 270):
        picture = upright.rotate(angle)
        assert picture.size == (300, 300)
        ink = np.argwhere(np.asarray(picture.convert("L")) < 128)
        (upper, left), (lower, right) = ink.min(axis=0), ink.max(axis=0)
        assert load_recogniser().evidence(picture, [(left, upper, right, lower)]) > 0.5
    assert load_recogniser().evidence(upright, []) == 0
    assert load_recogniser().evidence(upright, [(0.0, 0.0, 100.0, 20.0)]) == 0


def test_first_look_gives_nothing_up() -> None:
    """The half canvas may find text, never clear a picture of it: small letters show on the whole one only."""
    large, small = (Image.new("RGB", (400, 400), "white") for _ in range(2))
    ImageDraw.Draw(large).text((10, 100), "SALE NOW", fill="black", font=ImageFont.load_default(size=90))
    ImageDraw.Draw(small).text((10, 100), "a few words", fill="black", font=ImageFont.load_default(size=8))
    thumbnail = Image.new("RGB", (150, 150), "white")
    ImageDraw.Draw(thumbnail).text((10, 50), "a few words", fill="black", font=ImageFont.load_default(size=20))
    values = TextAreaSignal(384, probed=False).measure([record(image) for image in (large, small, thumbnail)])
    assert values["text_canvas"] == [192, 384, 160]
    assert values["text_area"][0] > 0.15
    assert min(values["text_score"]) > MAX_TEXT_SCORE
    half = TextAreaSignal(192, probed=False).measure([record(small)])
    assert half["text_score"][0] < MAX_TEXT_SCORE  # else this picture shows nothing


def test_probe_spares_clean_pictures_also_where_no_text_is() -> None:
    """It comes with the package: a corpus without any text is spared CRAFT as well."""
    clean = [draw_shapes(seed, side) for seed, side in enumerate((200, 256, 300, 384, 512, 700) * 2)]
    values = TextAreaSignal(384).measure([record(picture) for picture in clean])
    skipped = [score < text_probe.THRESHOLD for score in values["text_probe"]]
    assert [area is None for area in values["text_area"]] == skipped
    assert [canvas is None for canvas in values["text_canvas"]] == skipped
    assert np.mean(skipped) > 0.25  # how many it spares of real pictures is what benchmarks/text.py measures
    written = [lay(picture, "CLICK HERE", 0, 0.05) for picture in clean]
    assert min(text_probe.score_text(written)) >= text_probe.THRESHOLD


def test_probe_is_for_large_canvases() -> None:
    small = TextAreaSignal(96)
    assert small.measure([record(draw_shapes(0))])["text_probe"] == [None]
    assert small.version == TextAreaSignal(96, probed=True).version
    assert "probe" in TextAreaSignal(384).describe() and "probe" not in small.describe()
    assert TextAreaSignal(384).cost() < TextAreaSignal(384, probed=False).cost()


def test_other_probe_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are a part of this version: measurements with others would bear its name."""
    other = tmp_path / "text_probe.safetensors"
    other.write_bytes(text_probe.WEIGHTS.read_bytes()[:-4] + b"1234")
    monkeypatch.setattr(text_probe, "WEIGHTS", other)
    text_probe.load_text_probe.cache_clear()
    with pytest.raises(ValueError, match="install emu_data again"):
        text_probe.score_text([draw_shapes(0)])
    monkeypatch.undo()
    assert text_probe.score_text([draw_shapes(0)]) is not None


@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 255))
@settings(max_examples=30, deadline=None)
def test_probe_takes_any_size(width: int, height: int, grey: int) -> None:
    """A plain ground of any size, however thin, is no text."""
    assert text_probe.score_text([Image.new("RGB", (width, height), (grey,) * 3)])[0] < text_probe.THRESHOLD


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
def test_the_version_depends_on_the_settings(signal: Signal, changes: dict) -> None:
    assert dataclasses.replace(signal).version == signal.version
    assert dataclasses.replace(signal, **changes).version != signal.version


def every_kind_of_signal() -> list[Signal]:
    """Return one of each class, and of each way in which one says what measured it."""
    encoder = Encoder("ViT-B-32/openai")
    return [
        GeometrySignal(),
        CaptionSignal(),
        CaptionSignal(counts="counts.parquet"),
        LooksSignal(),
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
        TextAreaSignal(scores_read=(0.1, 0.4)),
    ]


def test_what_measured_it_is_written_for_people() -> None:
    """A report shows it: a few words, neither a docstring nor a Python value."""
    signals = every_kind_of_signal()
    package = Path(emu_data.signals.__file__).parent
    defined = {name for path in package.glob("*.py") for name in re.findall(r"class (\w+)\(Signal\)", path.read_text())}
    assert {type(signal).__name__ for signal in signals} == defined
    for signal in signals:
        reported = signal.describe()
        assert (
            not set("`'\"[]{}\n") & set(reported.replace("'s ", ""))
            and "None" not in reported
            and "(0." not in reported
        ), reported
        assert reported not in inspect.getsource(type(signal)).split('"""')[1]
        assert len(reported.split()) > 1 and not reported.endswith(".")
