"""The judge of the faithfulness round: an open_clip model of its own, trained on rows that passed the gates.

It has another width and seed than those of `emu_models.alignment` and is never used in filtering; or weights that were
brought along take its place. Part of the pictures is kept from it, and its error is measured on pairs of these before
its folder appears: there is no judge without a known error.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from emu_data.files import atomic_dir, fingerprint, restore_dir, write_json, write_parquet
from emu_data.shards import read_images
from emu_models.alignment import AlignmentConfig, save_network, train_network
from emu_models.evaluation.judge import find_weights, load_judge
from emu_models.evaluation.known_pairs import measure_judge
from emu_models.training.identity import hash_weights_at
from emu_models.training.jobs import Job, run_alone

if TYPE_CHECKING:
    from emu_models.training.running import Running

KNOWN_FILE = "known_pairs.parquet"  # key_a, key_b, caption, right, decision
HELD_FILE = "held.parquet"  # key, caption of the pictures that it has not seen
# Pictures of known pairs are read at so many times the judge's own size, so that the raters' views (a crop, a shift of
# a sixteenth) differ by more than what resizing leaves of them; chosen here.
SIZE_SCALE = 2
MAX_KNOWN = 1000  # held-out pictures that pairs are made of: the interval is then within 3 points; chosen here


@dataclass(frozen=True)
class JudgeConfig(AlignmentConfig):
    """width: of the convolutional tower, half as much again as that of the models that filter. held_share: of the
    pictures, kept from training. weights: a folder or name of open_clip weights to take instead of training."""

    width: int = 24
    seed: int = 1
    held_share: float = 0.3
    weights: str | None = None


@dataclass(frozen=True, kw_only=True)
class JudgeJob(Job):
    """root: the project, from which `config.weights` are named."""

    root: Path
    config: JudgeConfig

    @property
    def num_steps(self) -> int:
        return self.config.num_steps

    def run(self, running: "Running") -> dict[str, Any]:
        """It is small: one process trains it and the others wait."""
        return run_alone(self._train, running)

    def _train(self) -> dict[str, Any]:
        table = pd.read_parquet(self.rows)
        folder, numbers = make_judge(
            lambda keys, size: read_images(self.shards, keys, size),
            table["caption"].tolist(),
            table["key"].tolist(),
            self.config,
            self.states,
            self.root,
            self.code,
        )
        return self.reported(folder, **numbers)


def hold_out(captions: Sequence[str], keys: Sequence[str], share: float) -> np.ndarray:
    """Which of N rows are kept from training: bool (N,), `share` of them, the same whatever their order.

    Those whose hash is lowest, of captions that another row still shows first: a judge is asked of captions that it has
    seen. Rows of captions that occur once are taken only where there are not enough others.
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
    read: Callable[[list[str], int], np.ndarray],
    captions: Sequence[str],
    keys: Sequence[str],
    config: JudgeConfig,
    states: Path,
    root: Path,
    code: str = "",
    progress: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """Train on the rows that are not held out and measure on pairs of the others, in a folder of its own below
    `states` (see training/identity.py); one that was made before is found. Returns that folder and the numbers.

    read: keys and a size to uint8 (N, size, size, 3). captions, keys: N each, no near-twins among the pictures.
    root: the project, from which `weights` are named.
    result/ then holds open_clip's files (none where `weights` are given), meta.json with `judge_error`, held.parquet
    and known_pairs.parquet. Raises ValueError where nothing is left to learn from.
    """
    seen = read(list(keys), config.image_size)
    rows = fingerprint([list(captions), list(keys), seen.shape, hashlib.sha256(seen.tobytes()).hexdigest()])
    brought = find_weights(config.weights, root) if config.weights else ""
    weights = hash_weights_at(brought) if isinstance(brought, Path) else brought
    settings = {"name": "faithfulness_judge", "spec": asdict(config)}
    contents = {"rows": rows, "weights": weights, "code": code}
    identity = fingerprint([settings, contents])
    folder = Path(states) / identity
    restore_dir(folder / "result")
    write_json(folder / "identity.json", {"settings": settings, "contents": contents})
    if not (folder / "result").is_dir():
        _make(read, captions, keys, config, folder / "result", root, identity, progress)
    return folder, json.loads((folder / "result" / "meta.json").read_text())["result"]


def _make(
    read: Callable[[list[str], int], np.ndarray],
    captions: Sequence[str],
    keys: Sequence[str],
    config: JudgeConfig,
    out: Path,
    root: Path,
    identity: str,
    progress: bool,
) -> None:
    held = hold_out(captions, keys, config.held_share)
    learnt = [i for i in range(len(keys)) if not held[i]]
    known = [i for i in range(len(keys)) if held[i]][:MAX_KNOWN]
    with atomic_dir(out) as folder:
        numbers = {"num_held": int(held.sum())}
        if not config.weights:
            if not learnt:
                raise ValueError(
                    f"faithfulness_judge: {len(keys)} pictures passed the gates and {held.sum()} are held out, so "
                    "there is none to learn from: bring more pictures, or lower held_share"
                )
            images = read([keys[i] for i in learnt], config.image_size)
            with tqdm(total=config.num_steps, desc="faithfulness judge", disable=not progress, file=sys.stderr) as bar:
                network, loss = train_network(images, [captions[i] for i in learnt], config, bar)
            save_network(network, config, folder)
            numbers |= {"num_learnt": len(learnt), "loss": round(loss, 4)}
        judge = load_judge(find_weights(config.weights, root) if config.weights else folder)
        images = read([keys[i] for i in known], SIZE_SCALE * config.image_size)
        error, pairs = measure_judge(judge, images, [captions[i] for i in known], captions, config.seed)
        numbers |= {"num_known_pairs": error.num_pairs, "num_known_wrong": error.num_wrong}
        told = np.asarray(keys, object)[known]
        ends = pd.DataFrame({"key_a": told[pairs["a"].to_numpy(int)], "key_b": told[pairs["b"].to_numpy(int)]})
        write_parquet(folder / KNOWN_FILE, pd.concat([ends, pairs[["caption", "right", "decision"]]], axis=1))
        write_parquet(
            folder / HELD_FILE,
            pd.DataFrame({"key": np.asarray(keys, object)[held], "caption": np.asarray(captions, object)[held]}),
        )
        meta = {"identity": identity, "weights": config.weights, "config": asdict(config)}
        write_json(folder / "meta.json", meta | {"result": numbers, "judge_error": asdict(error)})
