"""What raters of the four rounds are shown, on a few drawn pictures."""

import shutil

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.files import write_parquet
from emu_data.samples import Sample, make_key
from emu_data.shards import write_manifest, write_shard
from emu_data.votes.vote import digest_picture
from emu_steps.captioning import recorded_captions
from emu_steps.contestants import Drawn, write_drawn
from emu_steps.layout import Layout
from tests.emu_data.drawings import draw_balls
from tests.shards import encode

COMPARISON = ("ours", "theirs")
CAPTION = "Eiffel TOWER in Paris, icons_70a003 "  # as people write; no rule may touch it


def write_filtered(layout: Layout, images: np.ndarray) -> None:
    """data/filtered with one shard of uint8 (N, H, W, 3) pictures, and what was recorded of captions."""
    keys = [make_key(0, n) for n in range(len(images))]
    samples = [Sample(k, encode(Image.fromarray(i)), CAPTION) for k, i in zip(keys, images, strict=True)]
    rows = pd.DataFrame({"key": keys, "caption": CAPTION, "status": "success"})
    shutil.rmtree(layout.filtered, ignore_errors=True)
    layout.filtered.mkdir(parents=True)
    write_shard(layout.filtered, 0, samples, rows)
    digests = [digest_picture(sample.image) for sample in samples]
    write_manifest(layout.filtered, rows[["key", "caption"]].assign(shard="00000", stored_sha256=digests))
    with recorded_captions(layout):  # none yet
        pass


def write_pairs(layout: Layout, candidate: np.ndarray) -> None:
    shutil.rmtree(layout.evaluation, ignore_errors=True)
    keys = [f"{n:04d}" for n in range(len(candidate))]
    first, second = COMPARISON
    for model, images in ((first, candidate), (second, draw_balls(False)[: len(candidate)])):
        (layout.evaluation / model).mkdir(parents=True)
        for key, image in zip(keys, images, strict=True):
            Image.fromarray(image).save(layout.evaluation / model / f"{key}.png")
    prompts = pd.DataFrame({"key": keys, "prompt": "a ball", "caption": "", "fixed": True, "seed": 0})
    write_parquet(layout.evaluation / "prompts.parquet", prompts)
    write_drawn(layout.evaluation, Drawn({}, {first: "quality_tuned", second: "models/other"}))
