"""Rounds of the studio on the graph's pictures, or on folders of pictures.

The studio knows no graph: here its rounds get the pictures that the graph's assets count votes on, and plans with the
numbers of params.yaml.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from emu_data.samples import Sample
from emu_data.shards import read_manifest
from emu_steps.layout import Layout
from emu_steps.params import Params, read_params
from emu_studio.captions import read_drafts, with_drafts
from emu_studio.database import Database
from emu_studio.harvesting import write_embeddings
from emu_studio.items import (
    NewItem,
    group_bursts,
    items_of_folder,
    items_of_folders,
    items_of_pairs,
    items_of_shards,
    read_picture,
)
from emu_studio.openable import Openable, Tell
from emu_studio.plan import CHOOSING, DEFAULTS, PAIRS, RoundPlan, change_plan, default_plan, read_plan
from emu_studio.rounds import OpenRound, list_rounds, open_round

EMBEDDED_AT_ONCE = 256  # pictures in memory; chosen here


@dataclass(frozen=True)
class Shown:
    """What a round is to show, and how. folders: of pictures, two for pairs; none for the project's own data. plan: a
    file; None for the plan that goes with the question. drafts: a file of captions that a model proposes
    (emu_studio.captions.read_drafts). with_probe: whether pictures of the project are embedded first, so that the queue
    can follow what people keep.
    """

    folders: Sequence[Path] = ()
    plan: Path | None = None
    drafts: Path | None = None
    with_probe: bool = True


def open_a_round(layout: Layout, database: Database, name: str, shown: Shown) -> OpenRound:
    """Open a round. If one of that name was closed, the new one gets a number, and its votes go where the first one's
    went. Raises ValueError if one is still open, or if plan and pictures do not fit."""
    found = propose(layout, database, name, shown)
    return open_round(database, found.plan, found.items(lambda num_done, num: None))


def openable_rounds(layout: Layout, database: Database) -> dict[str, Openable]:
    """Return the rounds that can be opened on what the project has made, by name; none while params.yaml is wrong."""
    found = {}
    for question in DEFAULTS:
        with suppress(ValueError):
            if _needed(layout, question).exists():
                proposed = propose(layout, database, question, Shown())
                found[proposed.plan.name] = proposed
    return found


def propose(layout: Layout, database: Database, name: str, shown: Shown) -> Openable:
    """Return the plan of a round, and a function that finds its pictures. Raises ValueError as open_a_round does."""
    given = read_plan(shown.plan) if shown.plan else None
    question = given.question if given else name
    if question not in DEFAULTS:
        raise ValueError(
            f"there is no question {name!r}, only {', '.join(DEFAULTS)}; a round of another name needs --plan FILE, "
            "which names its question"
        )
    if shown.drafts and question != "captions":
        raise ValueError(f"--drafts are captions, and {name} is a round of {question}")
    if shown.folders:
        plan = given or default_plan(question)
        find = _of_folders(shown.folders, question)
    else:
        params = read_params(layout.root / "params.yaml")
        plan = given or graph_plan(layout, params, question)
        plan = change_plan(plan, {"folder": question})  # where its asset looks for votes
        find = partial(graph_items, layout, params, question)
    plan = _named(plan, name, database)
    if shown.drafts:
        draft_of = read_drafts(shown.drafts).get
        return Openable(plan, lambda tell: with_drafts(find(), draft_of))
    if question in CHOOSING and not shown.folders and shown.with_probe:
        return Openable(plan, lambda tell: _embedded(layout, plan.name, find(), tell))
    return Openable(plan, lambda tell: find())


def _named(plan: RoundPlan, name: str, database: Database) -> RoundPlan:
    """The plan under its name or, if a round of that name was closed, under the name with a number."""
    rounds = {one.name: one for one in list_rounds(database)}
    family = [one for one in rounds.values() if _split(one.name)[0] == name]
    if still := [one.name for one in family if one.closed is None]:
        raise ValueError(f"the round {still[0]} is open already; `emu studio close {still[0]}` closes it")
    if name in rounds:
        number = 1 + max(_split(one.name)[1] for one in family)
        return change_plan(plan, {"name": f"{name}-{number}", "folder": rounds[name].plan.recorded_as})
    return change_plan(plan, {"name": name, "folder": "" if plan.folder == name else plan.folder})


def _split(name: str) -> tuple[str, int]:
    """generalist-2 -> generalist, 2."""
    head, _, tail = name.rpartition("-")
    return (head, int(tail)) if head and tail.isdigit() else (name, 1)


def graph_plan(layout: Layout, params: Params, question: str) -> RoundPlan:
    """Return the plan of a round on the project's data: seeds and wanted numbers are those of params.yaml, and all
    prompts are planned to be judged. Raises ValueError if nothing was made for it yet."""
    changes: dict[str, object] = {}
    if question != "captions":
        changes["seed"] = getattr(params, f"{question}_votes").seed
    if question in CHOOSING:
        section = params.generalist_selection if question == "generalist" else params.curated_set
        changes["target"] = section.num_images
    if question in PAIRS:
        with _told(question):
            prompts = pd.read_parquet(_needed(layout, question), columns=["prompt", "caption"])
        changes["planned_prompts"] = _texts(prompts, question).nunique()
    return default_plan(question, **changes)


def graph_items(layout: Layout, params: Params, question: str) -> list[NewItem]:
    """Return what people are shown of the project's data, with the digests by which its assets count votes. Raises
    ValueError if nothing was made yet."""
    with _told(question):
        return _graph_pairs(layout, params, question) if question in PAIRS else _graph_pictures(layout, question)


def _graph_pictures(layout: Layout, question: str) -> list[NewItem]:
    from emu_steps.voting import shown_to_generalists, shown_to_specialists

    shown: dict[str, Callable[[], list[str]]] = {
        "generalist": lambda: shown_to_generalists(layout),
        "specialist": lambda: shown_to_specialists(layout),
        "captions": lambda: read_manifest(layout.curated)["key"].tolist(),
    }
    manifest = read_manifest(layout.filtered).set_index("key", drop=False)
    rows: Any = manifest.loc[shown[question]()].to_dict("records")
    items = items_of_shards(layout.filtered, rows)
    if question != "generalist":
        return items
    return group_bursts(items, {row["key"]: row["cluster"] for row in rows if isinstance(row.get("cluster"), str)})


def _graph_pairs(layout: Layout, params: Params, question: str) -> list[NewItem]:
    from emu_steps.judging import read_prompts

    with_caption = question == "faithfulness"
    prompts = read_prompts(layout, "faithfulness" if with_caption else "appeal", params.comparison)
    first, second = (layout.evaluation / name for name in params.comparison)
    pairs = [
        (key, first / f"{key}.png", second / f"{key}.png", text)
        for key, text in zip(prompts["key"], _texts(prompts, question), strict=True)
    ]
    return items_of_pairs(pairs, with_caption)


def _texts(prompts: pd.DataFrame, question: str) -> pd.Series:
    """What each pair is about: the prompt; for faithfulness the caption that raters read, as judging.read_prompts."""
    if question == "appeal":
        return prompts["prompt"]
    return prompts["caption"].where(prompts["caption"] != "", prompts["prompt"])


def _needed(layout: Layout, question: str) -> Path:
    """The file that is there once a round has something to show."""
    return {
        "generalist": layout.filtered / "manifest.parquet",
        "specialist": layout.generalist / "selection.parquet",
        "captions": layout.curated / "manifest.parquet",
        "appeal": layout.evaluation / "prompts.parquet",
        "faithfulness": layout.evaluation / "prompts.parquet",
    }[question]


@contextmanager
def _told(question: str) -> Iterator[None]:
    """Say which asset makes what a round shows, if a file is missing."""
    made_by = {"generalist": "filtered_corpus", "specialist": "generalist_selection", "captions": "curated_set"}
    try:
        yield
    except FileNotFoundError:
        raise ValueError(
            f"the round {question} has nothing to show yet: emu materialize "
            f"{made_by.get(question, 'evaluation_images')} --upstream makes it, or --pictures FOLDER shows others"
        ) from None


def _of_folders(folders: Sequence[Path], question: str) -> Callable[[], list[NewItem]]:
    is_pairs = question in PAIRS
    if len(folders) != (2 if is_pairs else 1):
        needed = "two folders of pictures of the same names" if is_pairs else "one folder of pictures"
        raise ValueError(f"a round of {question} needs {needed}; --pictures was given {len(folders)} times")
    if is_pairs:
        return lambda: items_of_folders(folders[0], folders[1], with_caption=question == "faithfulness")
    return lambda: items_of_folder(folders[0])


def _embedded(layout: Layout, name: str, items: list[NewItem], tell: Tell) -> list[NewItem]:
    """The items, whose embeddings are written where the queue looks for them, if the project has an encoder."""
    embeddings = _embed(layout, items, tell)
    if embeddings is not None:
        write_embeddings(layout.data / "studio" / "embeddings" / f"{name}.npy", embeddings)
    return items


def _embed(layout: Layout, items: Sequence[NewItem], tell: Tell) -> np.ndarray | None:
    """float32 (N, D) of the items' first pictures, by the model that measured the corpus; None if there is none."""
    weights = read_params(layout.root / "params.yaml").filter_ledger.signals.alignment_weights
    folder = layout.model("alignment_model")
    if not weights and not any(folder.glob("fold_*")):
        return None
    from emu_data.clip_models import find_clip
    from emu_data.signals import LazySample
    from emu_data.signals.embedding import embed, shared_encoder

    encoder = shared_encoder(str(find_clip(weights, layout.root)) if weights else str(folder))
    parts = []
    starts = range(0, len(items), EMBEDDED_AT_ONCE)
    tell(0, len(items))
    for start in tqdm(starts, desc="embedding pictures", unit="batch", disable=len(starts) < 2):
        samples = [
            LazySample(Sample(item.key, read_picture(item.pictures[0].to_json()), item.caption))
            for item in items[start : start + EMBEDDED_AT_ONCE]
        ]
        parts.append(embed(encoder, samples))
        tell(start + len(samples), len(items))
    return np.concatenate(parts)
