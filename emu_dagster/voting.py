"""Rounds of votes over pictures: the rubric panel's, in the format that people's votes have."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from emu_dagster.filtering import SAMPLES_PER_SHARD
from emu_dagster.layout import Layout
from emu_dagster.params import Selection
from emu_dagster.pictures import contact_sheet
from emu_data.agreement import measure_agreement
from emu_data.captions import CAPTION_LABEL, write_caption
from emu_data.files import atomic_dir, write_json, write_parquet
from emu_data.rubric import RUBRIC_LABEL, CurationPanel, Stage
from emu_data.shards import read_images, read_manifest, write_subset
from emu_data.tally import Rule, tally
from emu_data.votes import Vote, VoteLog, export_parquet

VIEW_SIZE = 128  # px that raters see; the criteria were fitted at 64 and 128
# Of the pictures shown, how many times the wanted number each rater may keep: generalists are tuned for recall.
KEEP_FACTOR = {"generalist": 1.2, "specialist": 1.0}  # chosen here


@dataclass(frozen=True)
class Outcome:
    metrics: dict[str, float]
    kept: Image.Image
    dropped: Image.Image


def hold_generalist_round(layout: Layout, section: Selection) -> Outcome:
    """Votes on data/filtered; the pictures that go on, and the votes, to data/curation/generalist_selection."""
    keys = read_manifest(layout.filtered)["key"].tolist()
    votes, table, images = _vote(layout, "generalist", section, keys, "any")
    chosen = table.head(section.num_images)
    with atomic_dir(layout.generalist) as folder:
        _write_votes(folder, votes)
        write_parquet(folder / "selection.parquet", chosen)
    return _outcome(votes, table, images, keys, chosen["key"].tolist())


def hold_specialist_round(layout: Layout, section: Selection) -> Outcome:
    """Votes on the generalists' choice; shards with written captions, and the votes, to data/curated."""
    keys = sorted(pd.read_parquet(layout.generalist / "selection.parquet")["key"])
    votes, table, images = _vote(layout, "specialist", section, keys, "majority")
    chosen = table.head(section.num_images)
    names = read_manifest(layout.filtered).set_index("key")["caption"]
    captions = {key: write_caption(names[key]) for key in chosen["key"]}
    columns = chosen.assign(
        raw_caption=[names[key] for key in chosen["key"]],
        chosen_by=RUBRIC_LABEL,
        caption_by=CAPTION_LABEL,
    )
    with atomic_dir(layout.curated) as folder:
        write_subset(
            layout.filtered, folder, chosen["key"].tolist(), SAMPLES_PER_SHARD, captions=captions, columns=columns
        )
        _write_votes(folder, votes)
    return _outcome(votes, table, images, keys, chosen["key"].tolist())


def _vote(
    layout: Layout, stage: Stage, section: Selection, keys: list[str], rule: Rule
) -> tuple[list[Vote], pd.DataFrame, np.ndarray]:
    images = read_images(layout.filtered, keys, VIEW_SIZE)
    share = min(1.0, KEEP_FACTOR[stage] * section.num_images / max(1, len(keys)))
    votes = CurationPanel(section.num_raters, section.seed, stage).vote(images, keys, stage, share)
    return votes, tally(votes, rule), images


def _write_votes(folder: Path, votes: Sequence[Vote]) -> None:
    log = VoteLog(folder / "votes.jsonl")
    log.append(votes)
    export_parquet(log, folder / "votes.parquet")
    write_json(folder / "meta.json", {"votes_by": RUBRIC_LABEL, "head": log.verify().head})


def _outcome(
    votes: Sequence[Vote], table: pd.DataFrame, images: np.ndarray, keys: list[str], chosen: list[str]
) -> Outcome:
    position = {key: i for i, key in enumerate(keys)}
    dropped = [key for key in table["key"] if key not in set(chosen)]
    reasons = table.set_index("key")["reason"]
    agreement = measure_agreement(votes)
    metrics = {
        "num_shown": len(keys),
        "num_images": len(chosen),
        "num_votes": len(votes),
        "krippendorff_alpha": agreement.krippendorff_alpha,
        "gwet_ac1": agreement.gwet_ac1,
    }
    kept_sheet = contact_sheet(images[[position[k] for k in chosen[:40]]], [""] * min(40, len(chosen)))
    worst = dropped[-40:]
    dropped_sheet = contact_sheet(images[[position[k] for k in worst]], [reasons[k] for k in worst])
    return Outcome(metrics, kept_sheet, dropped_sheet)
