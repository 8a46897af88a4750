"""Which pictures are really of the kind that curation should find, where the corpus says it (params:
automatic_report.wanted).

The demo's corpus has shaded drawings among flat ones, and its files' addresses say which are which. Nothing that
filters, votes or trains reads this; it tells what those found, and of drawn pictures, by a classifier that learned real
ones, what they are.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emu_data.ledger import SOUND, read_ledger
from emu_data.shards import iter_rows, read_images, read_manifest
from emu_data.votes.intervals import Interval, exact_rate, paired_difference
from emu_reports.evaluation import WantedKind
from emu_steps.layout import Layout
from emu_steps.params import Wanted

if TYPE_CHECKING:
    from emu_models.evaluation.kinds import KindClassifier

NUM_LEARNED = 2000  # pictures from which the kinds are learned, at most; chosen here


def wanted_keys(layout: Layout, wanted: Wanted) -> set[str]:
    """Return the keys of the raw pictures of the wanted kind. Raises ValueError if the corpus has no such column, or
    nothing in it contains the text."""
    keys, known = set[str](), set[str]()
    for rows in iter_rows(layout.raw):
        known |= set(rows.columns)
        if wanted.column in rows.columns:
            found = rows[wanted.column].astype("string").str.contains(wanted.contains, regex=False).fillna(False)
            keys |= set(rows.loc[found.to_numpy(bool), "key"])
    if wanted.column not in known:
        raise ValueError(f"automatic_report.wanted: the corpus has no column {wanted.column!r}, only {sorted(known)}")
    if not keys:
        raise ValueError(f"automatic_report.wanted: no {wanted.column} contains {wanted.contains!r}")
    return keys


def learn_wanted(layout: Layout, keys: set[str], size: int, seed: int) -> "KindClassifier":
    """Learn from real pictures, which passed every gate, whether they are of the wanted kind. size: px per side."""
    from emu_models.evaluation.kinds import learn_kind

    ledger = read_ledger(layout.filtered / "ledger")
    sound = ledger[ledger["first_failed_gate"].isin(SOUND)].dropna(subset="caption").sort_values("key")
    if len(sound) > NUM_LEARNED:
        sound = sound.sample(NUM_LEARNED, random_state=seed).sort_values("key")
    images = read_images(layout.raw, sound["key"].tolist(), size)
    return learn_kind(images, sound["key"].isin(keys).to_numpy(), sound["caption"].tolist(), seed)


@dataclass(frozen=True)
class Found:
    """How well curation found the wanted kind, in per cent: precision of the curated set, recall among the filtered
    pictures."""

    precision: Interval
    recall: Interval


def measure_curation(layout: Layout, keys: set[str]) -> Found:
    """Compare the curated set with the pictures of the wanted kind among the filtered ones."""
    filtered, curated = (set(read_manifest(folder)["key"]) for folder in (layout.filtered, layout.curated))
    right = len(curated & keys)
    return Found(exact_rate(right, len(curated)), exact_rate(right, len(filtered & keys)))


def measure_wanted(
    layout: Layout,
    wanted: Wanted,
    pictures: dict[str, np.ndarray],
    comparison: tuple[str, str],
    size: int,
    seed: int,
) -> WantedKind:
    """Return which share of each contestant's pictures, uint8 (N, H, W, 3), is of the wanted kind. comparison: the
    candidate and whom it is compared with."""
    keys = wanted_keys(layout, wanted)
    classifier, found = learn_wanted(layout, keys, size, seed), measure_curation(layout, keys)
    is_wanted = {name: classifier.is_wanted(images) for name, images in pictures.items()}
    first, second = (is_wanted[name] for name in comparison)
    return WantedKind(
        name=wanted.name,
        shares={name: exact_rate(int(column.sum()), len(column)) for name, column in is_wanted.items()},
        difference=paired_difference(int((first & ~second).sum()), int((second & ~first).sum()), len(first)),
        num_right=classifier.num_right,
        num_tried=classifier.num_tried,
        precision=found.precision,
        recall=found.recall,
    )
