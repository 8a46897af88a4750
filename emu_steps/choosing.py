"""What the votes chose: the generalists' selection, and the curated set.

Only pictures that the round chose are taken, even if there are fewer than params.yaml asks for.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from emu_data.files import atomic_dir, write_json, write_parquet
from emu_data.samples import Sample, decode_rgb, read_size
from emu_data.shards import read_images, read_manifest, write_manifest, write_subset
from emu_data.votes.tally import Rule, choose, tally
from emu_data.votes.vote import Vote, counted
from emu_reports.sheets import contact_sheet
from emu_steps.captioning import caption_texts
from emu_steps.filtering import SAMPLES_PER_SHARD
from emu_steps.layout import Layout
from emu_steps.params.kinds import Voters
from emu_steps.voting import (
    describe_deciders,
    digest_pictures,
    read_votes,
    shown_to_generalists,
    shown_to_specialists,
)

if TYPE_CHECKING:
    from emu_models.upsampling import Enlarge

META_NAME = "meta.json"
NUM_SHOWN = 40  # pictures on a contact sheet; chosen here
SHEET_SIZE = 96  # px per side of each; chosen here


@dataclass(frozen=True)
class Choice:
    """What a round chose. table: all rows of `tally`. chosen: the chosen rows, best first, with `chosen_by` (who voted,
    in words). votes: those that count. head: the head hash of their log. voters: whose votes count. num_upsampled: how
    many of the curated pictures were enlarged.
    """

    table: pd.DataFrame
    chosen: pd.DataFrame
    votes: list[Vote]
    num_wanted: int
    head: str
    voters: Voters
    num_upsampled: int = 0

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers of pictures: chosen, wanted, and chosen by the votes of people."""
        return {
            "num_images": len(self.chosen),
            "num_wanted": self.num_wanted,
            "num_chosen_by_people": int(self.chosen["by_people"].sum()),
            **({"num_upsampled": self.num_upsampled} if self.num_upsampled else {}),
        }

    @property
    def tables(self) -> dict[str, str]:
        """What Dagster's page shows about the choice."""
        end = ": the round chose no more" if len(self.chosen) < self.num_wanted else ""
        return {
            "result": f"{len(self.chosen)} of {self.num_wanted} wanted{end}",
            "chosen_by": describe_deciders(votes_on(self.votes, self.chosen["key"]), self.voters),
            "votes_head": self.head,
        }


def select_generalists_choice(layout: Layout, num_wanted: int, voters: Voters) -> Choice:
    """Write data/curation/generalist_selection. One vote to keep a picture is enough, for recall. Raises ValueError if
    nothing was chosen."""
    choice = _choose(layout, "generalist", shown_to_generalists(layout), "any", num_wanted, voters)
    with atomic_dir(layout.generalist) as folder:
        write_parquet(folder / "selection.parquet", choice.chosen)
    return choice


def write_curated_set(
    layout: Layout, num_wanted: int, voters: Voters, upsample_to: int | None = None, upsampler: Path | None = None
) -> Choice:
    """Write data/curated: shards with the captions that people wrote, short and long, and the corpus's where nobody
    wrote any. For precision, a picture needs more votes to keep it than to drop it. With upsample_to, pictures whose
    shorter side has fewer px are enlarged, and the manifest says of each by what (`upsampled_by`).

    Only facts about the chosen pictures are written, so that a vote that does not change the choice changes no byte.
    Raises ValueError if nothing was chosen.
    """
    choice = _choose(layout, "specialist", shown_to_specialists(layout), "majority", num_wanted, voters)
    keys = choice.chosen["key"].tolist()
    corpus = read_manifest(layout.filtered).set_index("key")["caption"]
    texts = caption_texts(layout, corpus.loc[keys].tolist(), digest_pictures(layout, keys))
    meta = {"chosen_by": choice.tables["chosen_by"], "captioned_by": _describe_writers(texts)}
    with atomic_dir(layout.curated) as folder:
        enlarged: dict[str, str] = {}
        change = None if upsample_to is None else _enlarger(upsampler, upsample_to, enlarged)
        manifest = write_subset(layout.filtered, folder, keys, SAMPLES_PER_SHARD, choice.chosen, texts, change)
        if change is not None:
            write_manifest(folder, manifest.assign(upsampled_by=manifest["key"].map(enlarged).astype("string")))
        write_json(folder / META_NAME, meta)
    return replace(choice, num_upsampled=len(enlarged))


def _enlarger(upsampler: Path | None, side: int, enlarged: dict[str, str]) -> Callable[[Sample], bytes | None]:
    """Return what enlarges a sample's picture with a shorter side below `side` px, as a PNG, and notes in `enlarged` by
    what. The upsampler is loaded for the first of them."""

    @cache
    def load() -> "tuple[Enlarge, str]":
        from emu_models.upsampling import load_upsampler

        return load_upsampler(upsampler, side)

    def change(sample: Sample) -> bytes | None:
        if min(read_size(sample.image)) >= side:
            return None
        enlarge, by = load()
        file = io.BytesIO()
        enlarge(decode_rgb(sample.image), sample.caption, sample.key).save(file, "PNG")
        enlarged[sample.key] = by
        return file.getvalue()

    return change


def _describe_writers(texts: pd.DataFrame) -> str:
    writers = texts["captioned_by"].dropna()
    if not len(writers):
        return "nobody: the captions are the corpus's"
    people = f"{writers.nunique()} {'person' if writers.nunique() == 1 else 'people'}"
    return f"{people}: {len(writers)} of {len(texts)} captions, the others are the corpus's"


def read_chosen_by(layout: Layout) -> str:
    """Return who voted on the pictures of data/curated, in words. Raises ValueError if an older version wrote it."""
    return _read_meta(layout)["chosen_by"]


def read_captioned_by(layout: Layout) -> str:
    """Return who wrote the captions of data/curated, in words. Raises ValueError if an older version wrote it."""
    return _read_meta(layout)["captioned_by"]


def _read_meta(layout: Layout) -> dict[str, str]:
    path = layout.curated / META_NAME
    meta = json.loads(path.read_text()) if path.is_file() else {}
    if meta.keys() != {"chosen_by", "captioned_by"}:
        raise ValueError(f"{path}: an older version wrote this set; materialise curated_set")
    return meta


def sheets(layout: Layout, choice: Choice) -> dict[str, Image.Image]:
    """Return contact sheets of the best chosen pictures, and of the worst other pictures with the most frequent reason
    for dropping each.
    """
    kept = choice.chosen["key"].tolist()[:NUM_SHOWN]
    others = choice.table[~choice.table["key"].isin(choice.chosen["key"])].tail(NUM_SHOWN)
    return {
        "kept": contact_sheet(read_images(layout.filtered, kept, SHEET_SIZE), [""] * len(kept)),
        "dropped": contact_sheet(
            read_images(layout.filtered, others["key"].tolist(), SHEET_SIZE), others["reason"].tolist()
        ),
    }


def votes_on(votes: list[Vote], keys: pd.Series) -> list[Vote]:
    """Return the votes on pictures whose keys are in `keys`, in their order."""
    wanted = set(keys)
    return [vote for vote in votes if vote.key in wanted]


def _choose(layout: Layout, name: str, keys: list[str], rule: Rule, num_wanted: int, voters: Voters) -> Choice:
    recorded = read_votes(layout, name, voters)
    votes = counted(recorded.votes, digest_pictures(layout, keys))
    if not votes:
        raise ValueError(
            f"no vote in {layout.votes(name)} is on a picture of the current round: materialise {name}_votes"
        )
    table = tally(votes, rule)
    best = choose(table, num_wanted)
    if not best:
        raise ValueError(
            f"the {name}s chose none of {len(keys)} pictures ({describe_deciders(votes, voters)}): add pictures, "
            f"change the raters, or vote to keep some in {layout.votes(name)}"
        )
    chosen = table.set_index("key", drop=False).loc[best].reset_index(drop=True)
    by_key: dict[str, list[Vote]] = {}
    for vote in votes:
        by_key.setdefault(vote.key, []).append(vote)
    chosen = chosen.assign(chosen_by=[describe_deciders(by_key[key], voters) for key in best])
    return Choice(table, chosen, votes, num_wanted, recorded.head, voters)
