"""The training loop that every network here learns by: schedule, average, validate, checkpoint, stop, resume.

Decisions: a step's rows and noise depend on (seed, step) alone (order.py), so that a killed run resumes bitwise on CPU;
a checkpoint replaces the last one atomically; a NaN stops the run and names the batch; SIGINT saves and leaves. With
several processes (distributed.py) all take every decision together and at the same step; the one that leads writes.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from emu_data.files import atomic_file, restore_dir
from emu_models.device import choose_device
from emu_models.training.distributed import put_back
from emu_models.training.early_stopping import EarlyStopping
from emu_models.training.ema import WeightAverage
from emu_models.training.jobs import LoopConfig
from emu_models.training.prefetch import Prefetcher
from emu_models.training.running import UNHEARD, Running
from emu_models.training.state import load_state, save_state

FINAL_LEARNING_RATE = 0.03  # share of the peak that the cosine ends at; chosen here, 2026-11-23
NUM_POINTS = 1000  # of a curve of what is measured at every step, at the most; chosen here


class Interrupted(Exception):
    """Training was asked to stop, has saved its state and can be resumed."""


class NotFinite(ValueError):
    """A loss or a gradient became NaN or infinite."""


class Learner(Protocol):
    """What the loop trains. `network` is averaged into `averaged`, which is validated; `modules` and `optimizers`, of
    the same names, are checkpointed."""

    @property
    def network(self) -> nn.Module: ...

    @property
    def averaged(self) -> nn.Module: ...

    @property
    def modules(self) -> Mapping[str, nn.Module]: ...

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]: ...

    def prepare(self, step: int) -> Any:
        """The batch of a step, on the CPU. Called in threads, ahead of time: it may depend on nothing but the step."""
        ...

    def learn(self, step: int, batch: Any) -> dict[str, float]:
        """One optimiser step; returns its metrics, `loss` among them: ours, such that the mean over all processes is
        that of the whole batch."""
        ...

    def batch_keys(self, step: int) -> list[str]:
        """Keys of the rows of a step, for the message where it goes wrong."""
        ...

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Metrics of `network` on held-out rows, `val_loss` among them; no randomness of its own."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """All but `timings` is the same for every run of the same configuration, however often it was interrupted.

    folder: where state, metrics.jsonl and result of the training lie. timings: seconds in all, resumed_from (the step
    at which this process began), steps_per_second and loader_wait_share (0..1, of the time, how much was spent waiting
    for a batch) since then.
    """

    num_steps: int
    best_step: int
    stopped_early: bool
    metrics: dict[str, float]
    timings: dict[str, float]
    folder: Path


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then a cosine to FINAL_LEARNING_RATE of the peak (Loshchilov and Hutter, arXiv 1608.03983)."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
    return config.learning_rate * warm * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def run_training(
    learner: Learner,
    config: LoopConfig,
    folder: Path,
    fingerprint: str,
    description: str,
    running: Running = UNHEARD,
    draw_samples: Callable[[int], None] = lambda step: None,
) -> TrainingResult:
    """Trains to the end, or to an early stop; the averaged weights are then in `learner.averaged`.

    `folder` holds the state while training: state/ and metrics.jsonl. Raises Interrupted after saving when
    `running.stop_requested`, NotFinite on a NaN loss or gradient; the last saved state is then from before it;
    ValueError where the state there is another training's. What depends on the clock goes to the sink and the result's
    timings, not to metrics.jsonl.
    """
    world = running.world
    folder.mkdir(parents=True, exist_ok=True)
    if world.leads:
        restore_dir(folder / "state")
    world.wait()
    average = WeightAverage(learner.averaged, config.ema_decay)
    stopping = EarlyStopping(config.max_rise)
    modules = {**learner.modules, "averaged": learner.averaged}
    meta = load_state(folder / "state", fingerprint, modules, learner.optimizers)
    start, seconds_before, metrics = 0, 0.0, {}
    if meta is not None:
        start, seconds_before, metrics = meta["step"], meta["seconds"], meta["metrics"]
        stopping = EarlyStopping(**meta["stopping"])
    if world.mean({"start": start})["start"] != start:
        raise ValueError(f"{description}: the processes see different states in {folder}; let them share that folder")
    keep_log = _open_log(folder / "metrics.jsonl", start) if world.leads else nullcontext()
    began = last_saved = time.monotonic()

    def save(step: int) -> None:
        seconds = seconds_before + time.monotonic() - began
        state = {"step": step, "seconds": seconds, "metrics": metrics, "stopping": asdict(stopping)}
        if log is not None:
            os.fsync(log.fileno())  # a state is never ahead of its log
        save_state(folder / "state", {"fingerprint": fingerprint, **state}, modules, learner.optimizers, world)

    def timings(step: int) -> dict[str, float]:
        seconds = time.monotonic() - began
        return {
            "loader_wait_share": batches.seconds_waited / seconds,
            "steps_per_second": (step - start) / seconds,
        }

    step = start
    # Given only where it must be, so that TQDM_DISABLE counts.
    silent: dict[str, Any] = {} if world.leads else {"disable": True}
    progress = tqdm(total=config.num_steps, initial=start, desc=description, unit="step", mininterval=1, **silent)
    with (
        keep_log as log,
        progress as bar,
        Prefetcher(learner.prepare, start, config.num_steps, choose_device()) as batches,
    ):
        while step < config.num_steps and not stopping.should_stop:
            for optimizer in learner.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, config)
            learned = learner.learn(step, batches.get(step))
            save_due = world.leads and time.monotonic() - last_saved > config.checkpoint_seconds
            agreed = world.mean({**learned, "/stop": float(running.stop_requested()), "/save": float(save_due)})
            stop_now, save_now = agreed.pop("/stop") > 0, agreed.pop("/save") > 0
            broken = [f"{name} is {value}" for name, value in agreed.items() if not math.isfinite(value)]
            if broken:
                keys = ", ".join(learner.batch_keys(step))
                raise NotFinite(f"{description}: {' and '.join(broken)} at step {step}; its rows: {keys}")
            average.update(learner.network, step)
            point = {**agreed, "learning_rate": learning_rate(step, config)}
            step += 1
            metrics.update(agreed)
            bar.update()
            validates = step % config.validate_every == 0 or step == config.num_steps
            if validates:
                held_out = learner.validate(learner.averaged)
                point |= held_out
                metrics.update(held_out)
                put_back(learner.averaged)
                stopping.observe(step, metrics["val_loss"])
            if log is not None and (validates or step % point_every(config.num_steps) == 0):
                _write_log(log, step, point)
                running.sink(step, point | timings(step))
            if validates:
                bar.set_postfix(loss=f"{agreed['loss']:.4f}", val=f"{metrics['val_loss']:.4f}", refresh=False)
            if config.sample_every and step % config.sample_every == 0 and step < config.num_steps:
                draw_samples(step)
                put_back(learner.averaged)
            if stop_now:
                save(step)
                raise Interrupted(f"{description}: stopped after step {step} of {config.num_steps}; state saved")
            if save_now:
                save(step)
                last_saved = time.monotonic()
        save(step)  # so that a crash while the result is being exported costs no training
    seconds = seconds_before + time.monotonic() - began
    taken = {"seconds": seconds, "resumed_from": start, **(timings(step) if step > start else {})}
    return TrainingResult(step, stopping.best_step, step < config.num_steps, metrics, taken, folder)


def point_every(num_steps: int) -> int:
    """Steps between two points of a training's curves: few enough points to draw, and each step of a short one."""
    return math.ceil(num_steps / NUM_POINTS)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a training folder, one dict per point of its curves: `step`, what was measured at that step, and
    the held-out metrics where it was validated."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _open_log(path: Path, start: int):
    """The log with the lines up to step `start` kept: what came after the last saved state is trained again."""
    kept = []
    for line in path.read_text().splitlines() if start and path.is_file() else ():
        try:
            if json.loads(line)["step"] > start:
                break
        except ValueError:  # a kill cut it short, so it came after the state
            break
        kept.append(line)
    with atomic_file(path) as partial:
        partial.write_text("".join(line + "\n" for line in kept))
    return path.open("a", buffering=1)


def _write_log(log, step: int, metrics: dict[str, float]) -> None:
    log.write(json.dumps({"step": step, **metrics}) + "\n")
