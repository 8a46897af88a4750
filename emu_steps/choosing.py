"""What the votes chose: the pictures that go on, and the curated set with its written captions.

No picture is taken that its round did not choose, even if there are then fewer than were asked for.
"""

import json
from dataclasses import dataclass

import pandas as pd
from PIL import Image

from emu_data.files import atomic_dir, write_json, write_parquet
from emu_data.shards import read_images, read_manifest, write_subset
from emu_data.votes.captions import CAPTION_LABEL, write_caption
from emu_data.votes.tally import Rule, choose, tally
from emu_data.votes.vote import Vote, counted, describe_voters
from emu_reports.sheets import contact_sheet
from emu_steps.filtering import SAMPLES_PER_SHARD
from emu_steps.layout import Layout
from emu_steps.voting import digest_pictures, read_votes, shown_to_generalists, shown_to_specialists

META_NAME = "meta.json"
NUM_SHOWN = 40  # pictures of a contact sheet
SHEET_SIZE = 96  # px of each


@dataclass(frozen=True)
class Choice:
    """chosen: the rows of `tally` that go on, best first, with `chosen_by`. head: of the log they were counted in."""

    table: pd.DataFrame
    chosen: pd.DataFrame
    votes: list[Vote]
    num_wanted: int
    head: str

    @property
    def metrics(self) -> dict[str, float]:
        return {
            "num_images": len(self.chosen),
            "num_wanted": self.num_wanted,
            "num_chosen_by_people": int(self.chosen["by_people"].sum()),
        }

    @property
    def tables(self) -> dict[str, str]:
        """What Dagster's page says of the choice."""
        end = ": the round chose no more" if len(self.chosen) < self.num_wanted else ""
        return {
            "result": f"{len(self.chosen)} of {self.num_wanted} wanted{end}",
            "chosen_by": describe_voters(votes_on(self.votes, self.chosen["key"])),
            "votes_head": self.head,
        }


def select_generalists_choice(layout: Layout, num_wanted: int) -> Choice:
    """One keep is enough (recall); writes data/curation/generalist_selection."""
    choice = _choose(layout, "generalist", shown_to_generalists(layout), "any", num_wanted)
    with atomic_dir(layout.generalist) as folder:
        write_parquet(folder / "selection.parquet", choice.chosen)
    return choice


def write_curated_set(layout: Layout, num_wanted: int) -> Choice:
    """More keeps than drops (precision); writes data/curated, shards with written captions.

    What is written is about the chosen pictures alone, so that a vote that changes none of them changes no byte.
    """
    choice = _choose(layout, "specialist", shown_to_specialists(layout), "majority", num_wanted)
    keys = choice.chosen["key"].tolist()
    names = read_manifest(layout.filtered).set_index("key")["caption"]
    captions = {key: write_caption(names[key]) for key in keys}
    columns = choice.chosen.assign(raw_caption=[names[key] for key in keys], caption_by=CAPTION_LABEL)
    with atomic_dir(layout.curated) as folder:
        write_subset(layout.filtered, folder, keys, SAMPLES_PER_SHARD, captions=captions, columns=columns)
        write_json(folder / META_NAME, {"chosen_by": choice.tables["chosen_by"]})
    return choice


def read_chosen_by(layout: Layout) -> str:
    """Who voted on the pictures of data/curated, in words. ValueError where an older version wrote it."""
    path = layout.curated / META_NAME
    if not path.is_file():
        raise ValueError(f"{path} is missing: an older version wrote this set; materialise curated_set")
    return json.loads(path.read_text())["chosen_by"]


def sheets(layout: Layout, choice: Choice) -> dict[str, Image.Image]:
    """Contact sheets of the best that were chosen and the last that were not, these with their commonest reason."""
    kept = choice.chosen["key"].tolist()[:NUM_SHOWN]
    others = choice.table[~choice.table["key"].isin(choice.chosen["key"])].tail(NUM_SHOWN)
    return {
        "kept": contact_sheet(read_images(layout.filtered, kept, SHEET_SIZE), [""] * len(kept)),
        "dropped": contact_sheet(
            read_images(layout.filtered, others["key"].tolist(), SHEET_SIZE), others["reason"].tolist()
        ),
    }


def votes_on(votes: list[Vote], keys: pd.Series) -> list[Vote]:
    wanted = set(keys)
    return [vote for vote in votes if vote.key in wanted]


def _choose(layout: Layout, name: str, keys: list[str], rule: Rule, num_wanted: int) -> Choice:
    recorded = read_votes(layout, name)
    votes = counted(recorded.votes, digest_pictures(layout, keys))
    if not votes:
        raise ValueError(f"no vote in {layout.votes(name)} is on a picture shown now: materialise {name}_votes")
    table = tally(votes, rule)
    best = choose(table, num_wanted)
    if not best:
        raise ValueError(
            f"the {name}s chose none of {len(keys)} pictures ({describe_voters(votes)}): more pictures, other "
            f"raters, or votes that keep one are needed in {layout.votes(name)}"
        )
    chosen = table.set_index("key", drop=False).loc[best].reset_index(drop=True)
    by_key: dict[str, list[Vote]] = {}
    for vote in votes:
        by_key.setdefault(vote.key, []).append(vote)
    chosen = chosen.assign(chosen_by=[describe_voters(by_key[key]) for key in best])
    return Choice(table, chosen, votes, num_wanted, recorded.head)
