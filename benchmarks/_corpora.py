"""Shards, weights and photographs for benchmarks of the filters."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from _images import Labelled, load_photographs, write_words
from _overlays import find_pictures, load_picture
from PIL import Image

from emu_data.samples import Sample, make_key
from emu_data.shards import write_shard

ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9, 3 / 4)  # width / height of photographs; chosen here


def photographs(num: int, packages: Path, text_share: float, megapixels: float, seed: int) -> Iterator[Labelled]:
    """Yield crops of photographs, of one area, a share `text_share` (0..1) of them with words over more than a tenth of
    it: of Debian's wallpapers or, where those cannot be fetched, of the few that come with scikit-image.
    """
    rng = np.random.default_rng(seed)
    try:
        paths = [path for part in ("taught", "tuned", "judged") for path in find_pictures(part, packages, True)]
    except RuntimeError as error:
        print(f"{error}: photographs of scikit-image instead")
        paths = []
    for _ in range(num):
        image = load_picture(paths[int(rng.integers(len(paths)))]) if paths else _one_of(load_photographs(), rng)
        aspect = float(rng.choice(ASPECTS)) * rng.uniform(0.95, 1.05)
        size = round((megapixels * 1e6 * aspect) ** 0.5), round((megapixels * 1e6 / aspect) ** 0.5)
        scale = min(image.width / size[0], image.height / size[1]) * rng.uniform(0.7, 1.0)
        width, height = scale * size[0], scale * size[1]
        left, upper = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        box = (left, upper, left + width, upper + height)
        image, area = image.resize(size, Image.Resampling.BICUBIC, box=box), 0.0
        if rng.random() < text_share:
            image, area = write_words(image, rng.uniform(0.12, 0.4), rng)
        yield Labelled(image, area, True)


def _one_of(images: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    return images[int(rng.integers(len(images)))]


def write_corpus(folder: Path, samples: Sequence[Sample], per_shard: int = 10_000) -> list[str]:
    """Write samples as shards, with new keys; return the shards' names."""
    for shard, start in enumerate(range(0, len(samples), per_shard)):
        part = samples[start : start + per_shard]
        keyed = [Sample(make_key(shard, i), s.image, s.caption, s.meta) for i, s in enumerate(part)]
        write_one(folder, shard, keyed)
    return [f"{shard:05d}" for shard in range(-(-len(samples) // per_shard))]


def write_one(folder: Path, shard: int, samples: Sequence[Sample]) -> None:
    """Write one shard."""
    rows = pd.DataFrame([{"key": s.key, "caption": s.caption, "status": "success"} for s in samples])
    write_shard(folder, shard, samples, rows)


def write_weights(folder: Path) -> Path:
    """Save an untrained ViT-B/32 of open_clip, in open_clip's layout."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    folder.mkdir(parents=True)
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder
