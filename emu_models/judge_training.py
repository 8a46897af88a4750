"""The judge of the faithfulness round: a separate open_clip model, trained on rows that passed the gates.

Its width and seed differ from those of `emu_models.alignment`, and it is never used for filtering. Weights that params
name can take its place. Some pictures are held out, and its error is measured on pairs of them before its folder
appears, so there is no judge without a known error.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from torch import nn

from emu_data.clip_models import find_clip
from emu_data.files import atomic_dir, write_json, write_parquet
from emu_data.shards import read_images
from emu_models.alignment import describe_pairs, keep_curves
from emu_models.alignment_learner import AlignmentConfig, AlignmentLearner, save_network
from emu_models.evaluation.judge import digest_weights, load_judge
from emu_models.evaluation.known_pairs import measure_judge
from emu_models.training.identity import Identity, identify, open_folder, settings_of
from emu_models.training.jobs import CONTENTS, HOW, LoopJob
from emu_models.training.loop import TrainingResult, run_training
from emu_models.training.rows import Rows
from emu_models.training.running import UNHEARD, Running
from emu_models.training.squares import Squares, open_squares

KNOWN_FILE = "known_pairs.parquet"  # key_a, key_b, caption, right, decision
HELD_FILE = "held.parquet"  # key, caption of the held-out pictures
# Pictures of known pairs are read at this multiple of the judge's own size, so that resizing does not remove the
# differences of the raters' views (a crop, a shift of a sixteenth); chosen here.
SIZE_SCALE = 2
MAX_KNOWN = 1000  # held-out pictures from which pairs are made: the interval is then within 3 points; chosen here


@dataclass(frozen=True)
class JudgeConfig(AlignmentConfig):
    """The judge's network. width: 1.5 times that of the models that filter."""

    width: int = 24


@dataclass(frozen=True, kw_only=True)
class JudgeJob(LoopJob):
    """A model like those of emu_models.alignment. held_share: 0..1, the share of pictures that are held out. weights:
    open_clip weights to use instead of training, a source for clip_models.find_clip relative to `root`, the project."""

    root: Annotated[Path, HOW]
    held_share: float
    weights: Annotated[str | None, CONTENTS] = None
    training: JudgeConfig

    def contents(self) -> dict[str, str]:
        """Return a digest of the weights' bytes."""
        return {"weights": digest_weights(self.weights, self.root) if self.weights else ""}

    def run(self, running: Running) -> dict[str, Any]:
        """Train and measure; see `make_judge`."""
        table = pd.read_parquet(self.rows)

        def read(keys: list[str], size: int) -> np.ndarray | Squares:
            if size == self.resolution:  # of all rows
                return open_squares(self.shards, keys, size, self.cache, running.world)
            return read_images(self.shards, keys, size)

        folder, numbers = make_judge(self, read, table["caption"].tolist(), table["key"].tolist(), running)
        return self.reported(folder, **numbers)


def hold_out(captions: Sequence[str], keys: Sequence[str], share: float) -> np.ndarray:
    """Return which of N rows are held out: bool (N,), a share `share` (0..1) of them, whatever their order.

    They are the rows with the lowest hashes, as long as another row with the same caption remains, since the judge
    should have seen the captions that it is asked about. Rows whose caption occurs once are held out only if there are
    not enough others.
    """
    order = sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest())
    left: dict[str, int] = {}
    for caption in captions:
        left[caption] = left.get(caption, 0) + 1
    again, once = [], []
    for i in order:
        if left[captions[i]] > 1:
            left[captions[i]] -= 1
            again.append(i)
        else:
            once.append(i)
    held = np.zeros(len(keys), bool)
    held[[*again, *once][: round(share * len(keys))]] = True
    return held


def make_judge(
    job: JudgeJob,
    read: Callable[[list[str], int], np.ndarray | Squares],
    captions: Sequence[str],
    keys: Sequence[str],
    running: Running = UNHEARD,
) -> tuple[Path, dict[str, Any]]:
    """Train on the rows that are not held out and measure on pairs of the others, unless that was done before. Return
    the training's folder (training/identity.py) and name -> number.

    read: (keys, size) -> uint8 (N, size, size, 3). captions, keys: N each, without near-twins among the pictures.
    result/ then holds open_clip's files (unless `job.weights` are given), meta.json with `judge_error`, held.parquet
    and known_pairs.parquet. Raises ValueError if nothing is left to learn from, and whatever `run_training` raises.
    """
    images = read(list(keys), job.resolution)
    identity = identify(job, describe_pairs(images, keys, captions))
    folder = open_folder(job.states, identity, running.world.leads)
    is_finished = (folder / "result").is_dir()
    running.world.wait()  # all processes look before one of them can finish it
    if not is_finished:
        held = hold_out(captions, keys, job.held_share)
        rows = Rows(list(keys), list(captions), images, held)
        trained = None if job.weights else _train(job, rows, folder, identity, running)
        if running.world.leads:
            with atomic_dir(folder / "result") as partial:
                numbers: dict[str, Any] = {"num_held": int(held.sum())}
                if trained is not None:
                    network, result = trained
                    save_network(network, job.training, partial)
                    keep_curves(partial, result)
                    numbers |= {"num_learnt": len(keys) - numbers["num_held"], **result.metrics}
                error = _measure(job, read, rows, partial, numbers)
                meta = {"identity": identity.name, "weights": job.weights, **settings_of(job)}
                meta |= {"weights_digest": digest_weights(job.weights, job.root)} if job.weights else {}
                write_json(partial / "meta.json", meta | {"result": numbers, "judge_error": error})
        running.world.wait()
    return folder, json.loads((folder / "result" / "meta.json").read_text())["result"]


def _train(
    job: JudgeJob, rows: Rows, folder: Path, identity: Identity, running: Running
) -> tuple[nn.Module, TrainingResult]:
    if rows.is_held_out.all():
        raise ValueError(
            f"{job.name}: all {len(rows.keys)} pictures that passed the gates are held out, so none is left to learn "
            "from: use more pictures, or lower held_share"
        )
    learner = AlignmentLearner(rows, job.training)
    result = run_training(learner, job.loop, folder, identity.name, job.name, running)
    return learner.averaged, result


def _measure(
    job: JudgeJob,
    read: Callable[[list[str], int], np.ndarray | Squares],
    rows: Rows,
    folder: Path,
    numbers: dict[str, Any],
) -> dict[str, Any]:
    """Measure the judge in `folder` (or `job.weights`) on pairs of held-out rows. Write the pairs and those rows to
    `folder`, add to `numbers`, and return the error as plain values for JSON."""
    held = rows.held
    keys, captions = np.array(held.keys, object)[:MAX_KNOWN], held.captions[:MAX_KNOWN]
    judge = load_judge(find_clip(job.weights, job.root) if job.weights else folder)
    images = read(keys.tolist(), SIZE_SCALE * job.resolution)[:]
    error, pairs = measure_judge(judge, images, captions, rows.captions, job.training.seed)
    numbers |= {"num_known_pairs": error.num_pairs, "num_known_wrong": error.num_wrong}
    ends = pd.DataFrame({"key_a": keys[pairs["a"].to_numpy(int)], "key_b": keys[pairs["b"].to_numpy(int)]})
    write_parquet(folder / KNOWN_FILE, pd.concat([ends, pairs[["caption", "right", "decision"]]], axis=1))
    write_parquet(folder / HELD_FILE, pd.DataFrame({"key": held.keys, "caption": held.captions}))
    return asdict(error)
