"""Captions that people wrote for the chosen pictures: their recording, and what the curated set takes of them.

As with votes, what reads them reads them as recorded (captions.parquet); what was written since shows as new.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd

from emu_data.files import atomic_file, file_sha256, write_parquet
from emu_data.votes.captions import (
    CAPTIONS_NAME,
    TABLE_NAME,
    captions_to_frame,
    counted_captions,
    frame_to_captions,
    read_captions,
)
from emu_data.votes.rounds import open_log
from emu_steps.layout import Layout

ASSET = "written_captions"


@dataclass(frozen=True)
class Recorded:
    """The recorded captions. version: SHA-256 of the file that people's captions are added to."""

    metrics: dict[str, float]
    version: str


@contextmanager
def recorded_captions(layout: Layout) -> Iterator[Recorded]:
    """Write captions.parquet from what people wrote so far, and hold the folder until the `with` block ends: record it
    inside. Without any captions both files are empty."""
    folder = layout.votes("captions")
    with open_log(folder).held():
        file = folder / CAPTIONS_NAME
        if not file.is_file():
            with atomic_file(file) as partial:
                partial.touch()
        captions = read_captions(folder)
        write_parquet(folder / TABLE_NAME, captions_to_frame(captions))
        last = {(caption.key, caption.seen): caption for caption in captions}.values()
        metrics: dict[str, float] = {
            "num_pictures": len(last),
            "num_versions": len(captions),
            "num_people": len({caption.rater for caption in captions}),
            "num_drafts_unedited": sum(bool(caption.unedited) for caption in last),
        }
        yield Recorded(metrics, file_sha256(file))


def captions_grown(layout: Layout, version: str) -> str | None:
    """Why written_captions must record the captions again, in words; None if it need not. version: that it was last
    materialised with."""
    file = layout.votes("captions") / CAPTIONS_NAME
    return "its captions were added to or changed" if file.is_file() and file_sha256(file) != version else None


def caption_texts(layout: Layout, captions: Sequence[str], items: dict[str, str]) -> pd.DataFrame:
    """Return what people wrote of pictures, a row each: key; caption, the written short one or else the corpus's;
    caption_old, the corpus's; short and long, null where nobody wrote any; captioned_by, a pseudonym or null.

    captions: the corpus's, in the order of items. items: key -> digest of the picture, as for votes.vote.counted.
    Raises ValueError if the captions were never recorded.
    """
    table = layout.votes("captions") / TABLE_NAME
    if not table.is_file():
        raise ValueError(f"{table} is missing: materialise {ASSET}")
    written = counted_captions(frame_to_captions(pd.read_parquet(table)), items)
    rows = []
    for key, old in zip(items, captions, strict=True):
        found = written.get(key)
        short, long = (found.short or None, found.long or None) if found else (None, None)
        rater = found.rater if found else None
        rows.append((key, short or long or old, old, short, long, rater))
    names = ["key", "caption", "caption_old", "short", "long", "captioned_by"]
    return pd.DataFrame(rows, columns=names).astype("string")


def pick_captions(manifest: pd.DataFrame, which: str) -> pd.DataFrame:
    """Return key and caption of data/curated's manifest for a training.

    which: `short` or `long` takes what people wrote of that length, `mixed` the long one of about half of the
    pictures, by key; where nobody wrote any, it is the corpus's caption. `corpus` always takes that one. Raises
    ValueError if an older version wrote the manifest.
    """
    if "caption_old" not in manifest.columns:
        raise ValueError("an older version wrote data/curated: materialise curated_set")
    short, long = manifest["short"].fillna(manifest["long"]), manifest["long"].fillna(manifest["short"])
    # not the hash by which training chooses held-out rows (emu_models.training.order): long ones would be held out
    is_long = pd.util.hash_array(manifest["key"].to_numpy(object)) % 2 == 1
    chosen = {"short": short, "long": long, "mixed": short.where(~is_long, long), "corpus": manifest["caption_old"]}
    return manifest[["key"]].assign(caption=chosen[which].fillna(manifest["caption_old"]))
