"""Trains the text probe of emu_data/signals/text_probe.safetensors on the part "taught" of _overlays.py, and says what
each threshold would lose and spare on the part "tuned"; benchmarks/text.py measures what it is worth.

`make bench NAME=text_probe` writes it again (half an hour of one core). Half of the pictures bear writing, half of
either kind bear a pattern that merely looks like it (_patterns.py), six in ten are as a JPEG file has them. Places
under writing are taught to be text, and of every picture the surest place is taught whether it bears any, which is what
the score is.
"""

import argparse
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _overlays import Overlaid, overlaid_pictures
from PIL import Image
from safetensors.torch import save_file
from torch.nn.utils.fusion import fuse_conv_bn_eval

from emu_data.signals.craft import load_craft
from emu_data.signals.text_area import score_maps
from emu_data.signals.text_probe import SIDE, STRIDE, WEIGHTS, build_text_probe, picture_logits, to_input, to_pixels

TOP = Path(__file__).resolve().parent.parent
PACKAGES = Path(os.environ.get("EMU_PACKAGE_CACHE", TOP / "data" / "cache" / "packages"))
BATCH = 24
LEARNING_RATE = 3e-3
CROP = 128  # px
EDGE = 2  # positions at a crop's border, which see what is not there
TEXT = 0.12  # share of a position under writing that makes it text
CLOSED = 5  # px: gaps between letters are text
JPEG_SHARE, QUALITIES = 0.6, (30, 96)
CANVAS, FOUND = 384, 0.42  # what CRAFT finds: as profiles/paper.yaml has it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1600)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tuned", type=int, default=300, help="pictures that thresholds are tried on; 0: none")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(100)
    examples = (
        to_example(one, rng) for one in overlaid_pictures(arguments.pictures, "taught", PACKAGES, 0.5, seed=100)
    )
    pixels, places = zip(*examples, strict=True)
    print(f"{len(pixels)} pictures rendered", flush=True)
    network = fold(train(np.stack(pixels), np.stack(places), arguments.steps))
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, arguments.out)
    print(f"text_probe.WEIGHTS_SHA256 = {hashlib.sha256(arguments.out.read_bytes()).hexdigest()!r}")
    if arguments.tuned:
        try_thresholds(network, list(overlaid_pictures(arguments.tuned, "tuned", PACKAGES, 0.5, seed=200)))


def to_example(one: Overlaid, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels, uint8 (SIDE, SIDE, 3), and the share of each position under writing, float32 (SIDE / STRIDE,
    SIDE / STRIDE); what lies outside the picture is its edge repeated, and is not text.
    """
    pixels, clean = to_pixels(one.image), to_pixels(one.clean)
    changed = (np.abs(pixels.astype(np.int16) - clean).max(axis=2) > 12).astype(np.uint8)
    under = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((CLOSED, CLOSED)))
    if rng.random() < JPEG_SHARE:
        buffer = io.BytesIO()
        one.image.save(buffer, "JPEG", quality=int(rng.integers(*QUALITIES)))
        pixels = to_pixels(Image.open(buffer).convert("RGB"))
    fill = ((0, SIDE - pixels.shape[0]), (0, SIDE - pixels.shape[1]))
    num = SIDE // STRIDE
    share = np.pad(under, fill).reshape(num, STRIDE, num, STRIDE).mean(axis=(1, 3))
    return np.pad(pixels, (*fill, (0, 0)), mode="edge"), share.astype(np.float32)


def train(pixels_NHWC: np.ndarray, places_NHW: np.ndarray, steps: int) -> torch.nn.Module:
    """Return a network with batch norms, taught from scratch on crops, half of them around writing."""
    network = build_text_probe(with_norms=True).to(memory_format=torch.channels_last)
    rng = np.random.default_rng(0)
    written = np.argwhere(places_NHW > TEXT)
    # Each picture's writing counts the same, however large it is.
    weights = 1.0 / np.bincount(written[:, 0], minlength=len(places_NHW))[written[:, 0]]
    weights /= weights.sum()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.15)
    losses = []
    for step in range(steps):
        around = written[rng.choice(len(written), BATCH // 2, p=weights)]
        numbers = rng.integers(len(places_NHW), size=BATCH // 2)
        anywhere = np.stack([numbers, *rng.integers(0, SIDE // STRIDE, (2, BATCH // 2))], 1)
        crops = (_cut(pixels_NHWC, places_NHW, at, rng) for at in (*around, *anywhere))
        pixels, places = zip(*crops, strict=True)
        loss = find_loss(network, to_input(pixels), torch.from_numpy(np.stack(places)), negated=rng.random() < 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 99:
            print(f"step {step + 1} of {steps}: loss {np.mean(losses[-100:]):.3f}", flush=True)
    return network.eval()


def find_loss(network: Any, images_B3HW: Any, where_BHW: Any, negated: bool) -> Any:
    """Return what the network is taught by: each place's text, and whether there is any."""
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits
    num = len(images_B3HW)
    gain = 0.6 + 0.8 * torch.rand(num, 3, 1, 1)  # colours and brightness are no sign of text
    images = ((-images_B3HW if negated else images_B3HW) * gain + 0.2 * torch.randn(num, 3, 1, 1)).clamp(-1, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        logits_B1HW = network(images.contiguous(memory_format=torch.channels_last))
    logits_B1HW = logits_B1HW.float()[:, :, EDGE:-EDGE, EDGE:-EDGE]
    where = where_BHW[:, EDGE:-EDGE, EDGE:-EDGE]
    is_open = (where > TEXT) | (where == 0)  # at the border of writing either answer is right
    bears = (where > TEXT).flatten(1).any(dim=1).float()
    places = loss_of(logits_B1HW[:, 0][is_open], (where[is_open] > TEXT).float(), pos_weight=torch.tensor(2.0))
    return loss_of(picture_logits(logits_B1HW), bears) + places


def fold(trained: torch.nn.Module) -> torch.nn.Module:
    """Return the same network without its batch norms."""
    network = build_text_probe()
    layers: list[Any] = list(trained.children())
    convolutions = [layer for layer in network.children() if isinstance(layer, torch.nn.Conv2d)]
    found = [i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.Conv2d)]
    for mine, i in zip(convolutions, found, strict=True):
        has_norm = i + 1 < len(layers) and isinstance(layers[i + 1], torch.nn.BatchNorm2d)
        theirs = fuse_conv_bn_eval(layers[i], layers[i + 1]) if has_norm else layers[i]
        mine.load_state_dict({name: value.detach() for name, value in theirs.state_dict().items()})
    return network.eval().to(memory_format=torch.channels_last)


def try_thresholds(network: Any, pictures: list[Overlaid]) -> None:
    """Print what share of the texts that CRAFT finds each threshold loses, and what share of the clean it spares."""
    with torch.inference_mode():
        logits = np.array([float(picture_logits(network(to_input([to_pixels(one.image)])))) for one in pictures])
    has_text = np.array([one.text_area > 0 for one in pictures])
    scores = np.array([score_maps(load_craft().maps([one.image], CANVAS)[0]) for one in pictures])
    texts, clean = np.sort(logits[has_text & (scores > FOUND)]), logits[~has_text]
    for lost in (0, 0.005, 0.01, 0.02, 0.03, 0.05):
        threshold = texts[int(lost * len(texts))]
        print(f"threshold {threshold:.2f}: {lost:.1%} of {len(texts)} lost, {(clean < threshold).mean():.0%} spared")


def _cut(
    pixels_NHWC: np.ndarray, places_NHW: np.ndarray, at: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a crop of CROP px that has a place in its middle half where that can be, and the places in it."""
    side, (number, row, column) = CROP // STRIDE, at
    upper, left = (
        int(np.clip(middle - rng.integers(side // 4, 3 * side // 4), 0, SIDE // STRIDE - side))
        for middle in (row, column)
    )
    pixels = pixels_NHWC[number, STRIDE * upper : STRIDE * upper + CROP, STRIDE * left : STRIDE * left + CROP]
    return pixels, places_NHW[number, upper : upper + side, left : left + side]


if __name__ == "__main__":
    main()
