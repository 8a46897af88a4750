"""open_clip weights by folder, name and file: the network is the one with which the weights were trained."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from emu_data.clip_models import ClipSource, find_clip, load_clip
from emu_data.signals.alignment import AlignmentSignal
from emu_data.signals.embedding import Encoder, load_encoder

CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
GREY = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "resize_mode": "squash"}
TAGS = {
    "tiny": {
        "plain": open_clip.pretrained._pcfg("https://nowhere/plain.pt"),
        "quick": open_clip.pretrained._pcfg("https://nowhere/quick.pt", quick_gelu=True),
        "grey": {**open_clip.pretrained._pcfg("https://nowhere/grey.pt"), **GREY},
    },
    "tiny-quickgelu": {"quick": open_clip.pretrained._pcfg("https://nowhere/quick.pt", quick_gelu=True)},
    "tiny-alone": {"grey": {**open_clip.pretrained._pcfg("https://nowhere/grey.pt"), **GREY}},
    "tiny-untold": {},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Random weights of a tiny network, which the fixture `known` adds to open_clip's names."""
    torch.manual_seed(0)
    network = open_clip.CLIP(**CONFIG)
    path = tmp_path_factory.mktemp("weights") / "tiny@home.safetensors"
    save_file({name: 3 * w if w.ndim > 1 else w.clone() for name, w in network.state_dict().items()}, path)
    return path


@pytest.fixture(autouse=True)
def known(monkeypatch, file) -> None:
    """Make open_clip know the names of TAGS; what it would fetch for any tag is `file`."""
    factory: ModuleType = open_clip.factory
    quick = {name: {**CONFIG, "quick_gelu": name.endswith("quickgelu")} for name in TAGS}
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", {**factory._MODEL_CONFIGS, **quick})
    monkeypatch.setattr(open_clip.pretrained, "_PRETRAINED", {**open_clip.pretrained._PRETRAINED, **TAGS})
    monkeypatch.setattr(factory, "download_pretrained", lambda cfg, cache_dir=None: str(file))


def embed(source: str) -> np.ndarray:
    """Return the embeddings of one picture and one text, with load_clip."""
    model = load_clip(source)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    with torch.inference_mode():
        seen = model.network.encode_image(model.transform(image)[None], normalize=True)
        read = model.network.encode_text(model.tokenize(["a red apple"]), normalize=True)
    return torch.cat([seen, read]).numpy()


def expected(file: Path, quick_gelu: bool, grey: bool) -> np.ndarray:
    """Return the same with open_clip's own arguments."""
    way: dict[str, Any] = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3} if grey else {}
    ends: dict[str, Any] = {"image_interpolation": "bilinear", "image_resize_mode": "squash"} if grey else {}
    made: Any = open_clip.create_model_from_pretrained("tiny", str(file), force_quick_gelu=quick_gelu, **way, **ends)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    network, transform = made
    with torch.inference_mode():
        seen = network.eval().encode_image(transform(image)[None], normalize=True)
        read = network.encode_text(open_clip.get_tokenizer("tiny")(["a red apple"]), normalize=True)
    return torch.cat([seen, read]).numpy()


WAYS = {"plain": (False, False), "quick": (True, False), "grey": (False, True)}


@pytest.mark.filterwarnings("error:QuickGELU mismatch")
@pytest.mark.parametrize("tag", WAYS)
def test_a_file_with_a_tag_is_loaded_as_the_tag_says(file, tag):
    wanted = expected(file, *WAYS[tag])
    assert np.array_equal(embed(f"tiny@{tag}"), wanted)
    assert np.array_equal(embed(f"tiny@{tag}@{file}"), wanted)
    for other in WAYS.keys() - {tag}:
        assert np.abs(wanted - expected(file, *WAYS[other])).max() > 1e-3


def test_a_file_without_a_tag_is_accepted_only_if_all_tags_agree(file):
    with pytest.raises(ValueError, match=r"tiny@TAG@FILE, such as plain \(GELU\) or quick \(QuickGELU\) or grey"):
        load_clip(f"tiny@{file}")
    assert np.array_equal(embed(f"tiny-quickgelu@{file}"), expected(file, True, False))
    assert np.array_equal(embed(f"tiny-alone@{file}"), expected(file, False, True))
    assert np.array_equal(embed(f"tiny-untold@{file}"), expected(file, False, False))


def test_a_file_is_ambiguous_for_exactly_those_names_of_open_clip_whose_tags_differ(file):
    """If a name has a variant with QuickGELU, a file does not say which of the two it is."""
    refused = set()
    for name in open_clip.list_models():
        tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
        if len({(bool(tag.get("quick_gelu")), tag["mean"], tag["interpolation"]) for tag in tags}) > 1:
            refused.add(name)
            with pytest.raises(ValueError, match="does not say which it has"):
                load_clip(f"{name}@{file}")
    assert {"ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "tiny"} <= refused


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "not an open_clip model folder; give one, or a name"),
        ("ViT-B-33@openai", "has no model 'ViT-B-33'; similar names: ViT-B-"),
        (
            "tiny@missing.safetensors",
            "'missing.safetensors' is not a tag of tiny, and not a file; its tags: plain, quick, grey",
        ),
        ("tiny@plain@missing.safetensors", "there is no file .*missing.safetensors"),
        ("tiny@nix@missing.safetensors", "'nix' is not a tag of tiny"),
    ],
)
def test_a_source_that_does_not_exist_is_one_sentence(source, message):
    with pytest.raises(ValueError, match=message) as reported:
        load_clip(source)
    assert "\n" not in str(reported.value)


def test_sources_are_written_as_they_are_read(tmp_path, file):
    (tmp_path / "a@folder").mkdir()
    (tmp_path / "w@1.pt").write_bytes(b"w")
    sources = {
        "a@folder": ClipSource(path=tmp_path / "a@folder"),
        "tiny@w@1.pt": ClipSource("tiny", path=tmp_path / "w@1.pt"),
        "tiny@plain@w@1.pt": ClipSource("tiny", "plain", tmp_path / "w@1.pt"),
        "tiny@plain": ClipSource("tiny", "plain"),
        "hf-hub:owner/name": ClipSource("hf-hub:owner/name"),
    }
    for text, source in sources.items():
        found = find_clip(text, tmp_path)
        assert found == source and find_clip(str(found)) == found
        assert str(tmp_path) not in found.label


def test_other_bytes_and_another_tag_are_another_signal(tmp_path, file):
    copy = tmp_path / "weights.safetensors"
    copy.write_bytes(file.read_bytes())
    versions = {tag: AlignmentSignal(f"tiny@{tag}@{copy}", ("a cat",)).version for tag in ("plain", "quick")}
    assert len(set(versions.values())) == 2
    moved = copy.rename(tmp_path / "elsewhere.safetensors")
    assert AlignmentSignal(f"tiny@plain@{moved}", ("a cat",)).version == versions["plain"]
    content = bytearray(moved.read_bytes())
    content[-1] ^= 1  # of the same size
    moved.write_bytes(content)
    assert AlignmentSignal(f"tiny@plain@{moved}", ("a cat",)).version != versions["plain"]
    assert str(tmp_path) not in AlignmentSignal(f"tiny@plain@{moved}", ("a cat",)).describe()


def test_a_folders_tokenizer_matters_too(tmp_path):
    for name in ("open_clip_config.json", "open_clip_model.safetensors", "README.md", "tokenizer.json"):
        (tmp_path / name).write_text(json.dumps(name))
    before = Encoder(str(tmp_path)).settings()
    (tmp_path / "README.md").write_text("a note")
    assert Encoder(str(tmp_path)).settings() == before
    (tmp_path / "tokenizer.json").write_text("{}")
    assert Encoder(str(tmp_path)).settings() != before
    assert re.fullmatch(r"[\w.-]+", Encoder(str(tmp_path)).label)


TEXTS = ["a red apple", "a", "", "an apple " * 40]


def test_a_caption_is_embedded_without_the_empty_places_after_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu_data.signals.embedding.LENGTHS", 4)
    embedder, lengths = load_encoder(Encoder(f"tiny@plain@{file}")), []
    tower = embedder.network.transformer
    monkeypatch.setattr(
        tower, "forward", lambda x, **b: (lengths.append(x.shape[1]), type(tower).forward(tower, x, **b))[1]
    )
    with torch.inference_mode():
        whole = embedder.network.encode_text(embedder.tokenizer(TEXTS), normalize=True).numpy()
    assert np.allclose(np.stack(embedder.captions(TEXTS)), whole, atol=1e-6)
    assert np.allclose(embedder.texts(TEXTS), whole, atol=1e-6) and np.allclose(
        embedder.texts(TEXTS[:2]), whole[:2], atol=1e-6
    )
    context = CONFIG["text_cfg"]["context_length"]
    assert lengths == [context, 8, 4, context, context, 8]  # the start, each word, and the end, in fours
    assert np.array_equal(embedder.captions(TEXTS[1:2])[0], embedder.captions(TEXTS)[1])  # no neighbour counts
    assert embedder.captions([]) == []


def test_a_text_tower_that_sees_all_places_is_given_all(file: Path) -> None:
    embedder = load_encoder(Encoder(f"tiny@quick@{file}"))
    embedder.is_causal = False
    with torch.inference_mode():
        whole = embedder.network.encode_text(embedder.tokenizer(TEXTS), normalize=True).numpy()
    assert np.allclose(np.stack(embedder.captions(TEXTS)), whole, atol=1e-6)
