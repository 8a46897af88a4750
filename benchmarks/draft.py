"""What it changes that large JPEGs are halved while they are decoded: `make bench NAME=draft`.

The signals' values of photographs of several megapixels, half of them with words, decoded in this way and decoded whole
and then halved by means of boxes, as other formats are; and what either takes. Thresholds are those of
profiles/paper.yaml. Photographs: Debian's wallpapers (_corpora.py). Ends with one line per claim, and exit code 1 if
one is missed. `--megapixels` may be given several times.
"""

import argparse
import base64
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from _corpora import photographs
from _images import to_samples

from emu_data.alike import unpack
from emu_data.ledger import LIMITS
from emu_data.samples import decode_rgb
from emu_data.signals import SIDE, LazySample, Signal
from emu_data.signals.aesthetics import AestheticsSignal
from emu_data.signals.looks import LooksSignal
from emu_data.signals.safety import SafetySignal
from emu_data.signals.text_area import TextAreaSignal

TOP = Path(__file__).resolve().parent.parent
PACKAGES = Path(os.environ.get("EMU_PACKAGE_CACHE", TOP / "data" / "cache" / "packages"))
BASE, PAPER = (yaml.safe_load((TOP / "profiles" / f"{name}.yaml").read_text("utf-8")) for name in ("base", "paper"))
POLICY = {**BASE["filter_ledger"]["policy"], **PAPER["filter_ledger"]["policy"]}
SECTION = PAPER["filter_ledger"]["signals"]
SIGNALS: tuple[Signal, ...] = (
    LooksSignal(),
    AestheticsSignal(),
    SafetySignal(),
    TextAreaSignal(SECTION["canvas"], scores_read=tuple(SECTION["scores_read"])),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=60, help="of each size")
    parser.add_argument("--megapixels", type=float, action="append", help="default: 1.4 and 6")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measures = [signal.load() for signal in SIGNALS]
    drafted, whole, seconds = [], [], []
    for megapixels in arguments.megapixels or (1.4, 6.0):
        some = to_samples(list(photographs(arguments.pictures, PACKAGES, 0.5, megapixels, seed=5)))
        for sample in some:
            began = time.process_time()
            decoded = decode_rgb(sample.image)
            factor = 1 << max(0, (max(decoded.size) // SIDE).bit_length() - 1)
            by_boxes = decoded.reduce(factor) if factor > 1 else decoded
            between = time.process_time()
            lazy, other = LazySample(sample), LazySample(sample)
            _ = lazy.image
            seconds.append((megapixels, between - began, time.process_time() - between))
            other._seen[SIDE] = by_boxes
            assert lazy.image.size == by_boxes.size, (lazy.image.size, by_boxes.size)
            for found, one in ((drafted, lazy), (whole, other)):
                found.append({name: v[0] for measure in measures for name, v in measure([one]).items()})
    num_differing = 0
    for limit in LIMITS:
        threshold = POLICY.get(limit.field)
        if threshold is None or limit.column not in drafted[0]:
            continue
        one, two = ([_value(row[limit.column]) for row in rows] for rows in (drafted, whole))
        differing = [(a > threshold) != (b > threshold) for a, b in zip(one, two, strict=True)]
        apart = np.abs([a - b for a, b in zip(one, two, strict=True) if np.isfinite(a) and np.isfinite(b)] or [0.0])
        print(
            f"{limit.column}: at most {apart.max():.3g} apart, mean {apart.mean():.2g}; beyond {threshold}: "
            f"{sum(differing)} of {len(one)} decisions differ"
        )
        num_differing += sum(differing)
    pairs = [(_looks(a["looks"]), _looks(b["looks"])) for a, b in zip(drafted, whole, strict=True)]
    levels = [float(np.abs(a[0] - b[0]).max()) for a, b in pairs if len(a) and len(b)]
    num_unlike = sum(len(a) != len(b) for a, b in pairs)
    print(
        f"looks: grey values at most {max(levels):.0f} of 255 apart; {num_unlike} pictures have another number of them"
    )
    for column in ("richness", "sharpness"):
        apart = np.abs([a[column] - b[column] for a, b in zip(drafted, whole, strict=True)])
        print(f"{column}: at most {apart.max():.3g} apart, mean {apart.mean():.2g}; no threshold")
    table = np.array(seconds)
    for megapixels in sorted(set(table[:, 0])):
        one = 1000 * table[table[:, 0] == megapixels].mean(axis=0)
        print(f"{megapixels} megapixels: whole and boxes {one[1]:.1f} ms of CPU a picture, drafted {one[2]:.1f}")
    faster = table[:, 1].sum() / table[:, 2].sum()
    claims = [
        ("decisions that halving in the decoder changes", num_differing / len(drafted), "at most", 0.01),
        ("decoding and halving, CPU time / halving in the decoder", faster, "at least", 1.5),
    ]
    met = [value <= goal if word == "at most" else value >= goal for _, value, word, goal in claims]
    for (name, value, word, goal), is_met in zip(claims, met, strict=True):
        print(f"claim {name}: {value:.3g} (goal {word} {goal}){'' if is_met else '  MISSED'}")
    return 0 if all(met) else 1


def _value(value: Any) -> float:
    return -np.inf if value is None else float(value)


def _looks(looks: str | None) -> np.ndarray:
    """Grey values of each of a picture's looks (L, 32, 32)."""
    return unpack([base64.b64decode(looks)] if looks else [])[0].grey.astype(np.int16)


if __name__ == "__main__":
    sys.exit(main())
