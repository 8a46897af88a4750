"""Small open_clip models trained on the corpus itself, for machines that have no pretrained CLIP weights.

They answer one question, whether a caption fits a picture (Emu paper, section 3.3: CLIP image-text score). A model must
not have seen the pairs that it filters, so one model is trained per fold, with that fold held out (for training a model
just to filter, data filtering networks, arXiv 2309.17425, are the precedent). The judge of the reports is another
model, trained on the rows that passed the gates (judge_training.py). alignment_learner.py says how such a model learns.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emu_data.files import atomic_dir, write_json, write_parquet
from emu_models.alignment_learner import AlignmentConfig, AlignmentLearner, save_network
from emu_models.training.identity import identify, open_folder, settings_of
from emu_models.training.jobs import LoopJob
from emu_models.training.loop import TrainingResult, run_training
from emu_models.training.rows import Rows
from emu_models.training.running import UNHEARD, Running
from emu_models.training.squares import Squares, open_squares

FOLDS_FILE = "folds.parquet"  # columns key, fold; read by emu_data.signals.alignment


@dataclass(frozen=True, kw_only=True)
class AlignmentJob(LoopJob):
    """Alignment models, one per fold, each trained as `loop` says. rows: has a column `group`, whose pictures share a
    fold."""

    num_folds: int
    training: AlignmentConfig

    @property
    def num_steps(self) -> int:
        """Optimiser steps of all folds together."""
        return self.num_folds * self.loop.num_steps

    def run(self, running: Running) -> dict[str, Any]:
        """Train one model after the other; see `train_alignment`."""
        table = pd.read_parquet(self.rows)
        keys, captions = table["key"].tolist(), table["caption"].tolist()
        images = open_squares(self.shards, keys, self.resolution, self.cache, running.world)
        folds = assign_folds(captions, table["group"].tolist(), self.num_folds)
        folder, metrics = train_alignment(self, images, captions, keys, folds, running)
        numbers = {f"{name}_{fold}": value for fold, of in metrics.items() for name, value in of.items()}
        return self.reported(folder, num_images=len(table), **numbers)


def assign_folds(captions: Sequence[str], groups: Sequence[str], num_folds: int) -> np.ndarray:
    """Return the fold (0..num_folds-1) of each picture, int64 (N,).

    Pictures of one group (copies: see emu_data.near_twins) share a fold, so that no picture is scored by a model that
    saw its copy. The groups of a caption are spread over the folds, so that each model has seen every subject that is
    frequent enough in the corpus. The result depends only on captions and group names, not on the order.
    """
    caption_of: dict[str, str] = {}
    for caption, group in zip(captions, groups, strict=True):
        caption_of[group] = min(caption, caption_of.get(group, caption))
    members: dict[str, list[str]] = {}
    for group, caption in caption_of.items():
        members.setdefault(caption, []).append(group)
    fold_of: dict[str, int] = {}
    for caption, names in members.items():
        start = _digest(caption)
        for position, group in enumerate(sorted(names, key=_digest)):
            fold_of[group] = (start + position) % num_folds
    return np.array([fold_of[group] for group in groups], np.int64)


def train_alignment(
    job: AlignmentJob,
    images: np.ndarray | Squares,
    captions: Sequence[str],
    keys: Sequence[str],
    folds: np.ndarray,
    running: Running = UNHEARD,
) -> tuple[Path, dict[str, dict[str, float]]]:
    """Train fold_0, fold_1, …, each without its fold, unless that was done before. Return the training's folder
    (training/identity.py), whose result/ holds the models and folds.parquet, and name -> last metrics.

    images: uint8 (N, S, S, 3), S = job.resolution. captions, keys: N each. folds: int (N,), from `assign_folds`.
    Finished models are not trained again, and interrupted trainings continue. Raises ValueError if the arguments do not
    fit together or a fold holds every picture, and whatever `run_training` raises.
    """
    if not len(images) == len(captions) == len(keys) == len(folds):
        raise ValueError(
            f"{len(images)} images, {len(captions)} captions, {len(keys)} keys and {len(folds)} folds: there must be "
            "as many of each"
        )
    if images.dtype != np.uint8 or images.shape[1:] != (job.resolution, job.resolution, 3):
        side = job.resolution
        raise ValueError(f"images must be uint8 (N, {side}, {side}, 3), not {images.dtype} {images.shape}")
    for fold in range(job.num_folds):
        if (folds == fold).all():
            raise ValueError(
                f"fold_{fold} has no picture to learn from: lower alignment_model.num_folds, or use more pictures"
            )
    identity = identify(job, describe_pairs(images, captions, keys, map(str, folds)))
    folder, names = open_folder(job.states, identity, running.world.leads), [f"fold_{i}" for i in range(job.num_folds)]
    is_finished = (folder / "result").is_dir()
    running.world.wait()  # all processes look before one of them can finish it
    if not is_finished:
        learners, results = {}, {}
        for fold, name in enumerate(names):
            learners[name] = AlignmentLearner(Rows(list(keys), list(captions), images, folds == fold), job.training)
            place, heard = folder / "states" / name, _after(running, fold * job.loop.num_steps)
            results[name] = run_training(learners[name], job.loop, place, identity.name, f"{job.name} {name}", heard)
        if running.world.leads:
            with atomic_dir(folder / "result") as partial:
                for name, learner in learners.items():
                    (partial / name).mkdir()
                    save_network(learner.averaged, job.training, partial / name)
                    keep_curves(partial / name, results[name])
                    num_rows = {"num_learnt": len(learner.trained.keys), "num_held": len(learner.held.keys)}
                    write_json(partial / name / "meta.json", {**num_rows, "metrics": results[name].metrics})
                write_parquet(partial / FOLDS_FILE, pd.DataFrame({"key": list(keys), "fold": folds.astype(np.int64)}))
                write_json(partial / "meta.json", {"identity": identity.name, **settings_of(job)})
        running.world.wait()
    metas = {name: json.loads((folder / "result" / name / "meta.json").read_text()) for name in names}
    return folder, {name: meta["metrics"] for name, meta in metas.items()}


def describe_pairs(images: np.ndarray | Squares, *texts: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield, for a training's identity, a digest of the pixels of each picture, uint8 (N, S, S, 3), and its `texts` (N
    each)."""
    for image, *of_image in zip(images, *texts, strict=True):
        yield hashlib.sha256(image.tobytes()).hexdigest(), *of_image


def keep_curves(folder: Path, result: TrainingResult) -> None:
    """Copy the curves of a training to the folder of its model, for read_log."""
    (folder / "metrics.jsonl").write_bytes((result.folder / "metrics.jsonl").read_bytes())


def _after(running: Running, num_steps: int) -> Running:
    """Return `running` for a training that comes after others with `num_steps` steps in total: its curve follows
    theirs.
    """
    return replace(running, sink=lambda step, metrics: running.sink(num_steps + step, metrics))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")
