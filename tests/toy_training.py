"""Toy trainings for tests, and as a program: the same in processes of their own, alone or under torchrun.

python tests/toy_training.py JSON       JSON: a list of {"out": …, "strategy": …} and what `denoiser_job` takes, or
                                        {"kind": "alignment" or "judge", …} and what `matching_job` takes, or
                                        {"kind": "autoencoder", …}

Its processes save and end on SIGTERM, as those of a real training. "mishaps" of a job: what goes wrong at which step of
which start of the processes (torchrun starts them again), as a list of [start, step, rank, one of MISHAPS].
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from emu_dagster.machine.stopping import StopRequest, save_on_signal
from emu_models.alignment import AlignmentJob
from emu_models.alignment_learner import AlignmentConfig
from emu_models.judge_training import JudgeConfig, JudgeJob
from emu_models.latent import trainings
from emu_models.latent.jobs import (
    AutoencoderJob,
    AutoencoderLossConfig,
    AutoencoderTrainingConfig,
    DenoiserConfig,
    DenoiserJob,
    DenoiserTrainingConfig,
)
from emu_models.training import distributed
from emu_models.training.distributed import World, join_world, make_mesh
from emu_models.training.jobs import LoopConfig
from emu_models.training.loop import Interrupted
from emu_models.training.running import Running

LOOP = LoopConfig(
    num_steps=6,
    learning_rate=1e-3,
    warmup_steps=2,
    ema_decay=0.9,
    validate_every=2,
    max_rise=0.0,
    checkpoint_minutes=1e9,
    seed=0,
)

# Adam divides by the gradient's size, so it turns rounding into steps where a gradient is almost zero; at this rate
# such steps stay below the 1e-5 with which runs are compared.
GENTLE = replace(LOOP, learning_rate=1e-4)


def places(name: str, corpus: tuple[Path, Path], folder: Path) -> dict[str, Any]:
    """Return arguments of any job that trains in `folder`, on pictures of 32 px."""
    folders = {part: folder / part for part in ("out", "states", "cache")}
    return {"name": name, "shards": corpus[0], "rows": corpus[1], "resolution": 32, **folders}


def autoencoder_job(
    corpus: tuple[Path, Path], folder: Path, loop: LoopConfig = LOOP, batch_size: int = 4, **running: Any
) -> tuple[AutoencoderJob, Running]:
    losses = AutoencoderLossConfig(1e-6, 0.1, 0.5)
    job = AutoencoderJob(
        **places("autoencoder", corpus, folder),
        loop=loop,
        network={"latent_channels": 4, "widths": [16, 32], "fourier_bands": 1},
        training=AutoencoderTrainingConfig(loop.num_steps, batch_size, loop.learning_rate, losses, 0),
    )
    return job, Running(**running)


def denoiser_job(
    corpus: tuple[Path, Path],
    folder: Path,
    autoencoder: Path,
    loop: LoopConfig = LOOP,
    training: dict[str, Any] | None = None,
    prompts: tuple[str, ...] = ("a red square", "a blue square"),
    **running: Any,
) -> tuple[DenoiserJob, Running]:
    job = DenoiserJob(
        **places("denoiser", corpus, folder),
        loop=loop,
        autoencoder=autoencoder,
        denoiser=DenoiserConfig((32, 64), (False, False), 1, "joint"),
        num_text_tokens=8,
        training=replace(
            DenoiserTrainingConfig(loop.num_steps, 4, loop.learning_rate, 0.1, 0.2, 0), **(training or {})
        ),
        prompts=prompts,
        guidance_scale=2.0,
    )
    return job, Running(**running)


def matching_job(kind: str, corpus: tuple[Path, Path], folder: Path) -> AlignmentJob | JudgeJob:
    """Return a training of models that compare pictures with captions. The rows must have a column group."""
    common: dict[str, Any] = {**places(kind, corpus, folder), "loop": GENTLE}
    network: dict[str, Any] = {"width": 8, "embed_dim": 32, "text_width": 32, "batch_size": 8}
    if kind == "alignment":
        return AlignmentJob(**common, num_folds=2, training=AlignmentConfig(**network))
    return JudgeJob(**common, root=folder, held_share=0.25, training=JudgeConfig(**network))


def training_of(folder: Path) -> Path:
    """Return the folder of the only training that the jobs of `folder` have begun: its state, metrics.jsonl and
    result."""
    (found,) = (folder / "states").iterdir()
    return found


def result_of(folder: Path) -> Path:
    """Return the finished model of that training."""
    return training_of(folder) / "result"


def newest_state(states: Path) -> Path:
    """Return the folder of a training's newest state."""
    return max(path for path in states.iterdir() if not path.name.startswith("."))


def read_state(state: Path) -> dict[str, torch.Tensor]:
    """Return the whole tensors of a state, as torch's own reader joins them from the files of all processes."""
    reader = HuggingFaceStorageReader(str(state))
    found = reader.read_metadata().state_dict_metadata
    tensors: dict[str, torch.Tensor] = {
        name: torch.zeros(entry.size, dtype=entry.properties.dtype)
        for name, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def keep_single_precision() -> None:
    """Use single precision, so that results agree to 1e-5 on CPUs on which bf16 is used, too."""
    torch.cpu._is_amx_tile_supported = lambda: False


MISHAPS = {
    "kill": lambda: signal.raise_signal(signal.SIGKILL),
    "hang": lambda: time.sleep(600),
    "terminate the launcher": lambda: (os.kill(os.getppid(), signal.SIGTERM), time.sleep(4)),  # until it told us
}


def train_from_json(given: dict[str, Any], world: World, stop: StopRequest) -> None:
    stop_at, mishaps = given.get("stop_at"), given.get("mishaps", [])
    begun, count = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), 0

    def stop_requested() -> bool:
        """Called once per step."""
        nonlocal count
        count += 1
        for start, step, rank, what in mishaps:
            if (start, step, rank) == (begun, count, world.rank):
                MISHAPS[what]()
        # it is enough that one process gets the request
        return stop.requested or (count == stop_at and not world.leads)

    folder, corpus = Path(given["folder"]), (Path(given["shards"]), Path(given["rows"]))
    if given.get("kind") == "autoencoder":
        trainings.train_autoencoder(*autoencoder_job(corpus, folder, GENTLE, 5, world=world))
        return
    if "kind" in given:
        matching_job(given["kind"], corpus, folder).run(Running(world=world))
        return
    job, running = denoiser_job(
        corpus,
        folder,
        Path(given["autoencoder"]),
        replace(GENTLE, **given.get("loop", {})),
        given.get("training"),
        prompts=tuple(given.get("prompts", ())),
        stop_requested=stop_requested,
        world=world,
    )
    if "start_from" in given:
        job = replace(job, start_from=Path(given["start_from"]), autoencoder=None, denoiser=None)
    try:
        reported = f"began at {trainings.train_denoiser(job, running).timings['resumed_from']}"
    except Interrupted:
        reported = "interrupted"
    # in one write: with PYTHONUNBUFFERED the end of a line is its own write, and another process's may come first
    print(f"rank {world.rank} {reported}\n", end="", flush=True)


if __name__ == "__main__":
    stop = save_on_signal()
    if "TOY_PATIENCE" in os.environ:
        distributed.PATIENCE = timedelta(seconds=float(os.environ["TOY_PATIENCE"]))
    keep_single_precision()
    torch.set_num_threads(1)
    with join_world() as world:
        for given in json.loads(sys.argv[1]):
            mesh = make_mesh(given["strategy"], world.size) if world.size > 1 else None
            train_from_json(given, replace(world, mesh=mesh), stop)
