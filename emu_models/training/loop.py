"""The training loop of every network here: schedule, average, validate, save, stop, resume.

A step's rows and noise depend only on (seed, step) (order.py), so that a killed run resumes bitwise on CPU. A saved
state replaces the previous one atomically. A NaN stops the run, and the error names the batch. SIGINT saves and exits.
Several processes (distributed.py) take every decision together and at the same step; rank 0 writes.
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

FINAL_LEARNING_RATE = 0.03  # share of the peak at which the cosine ends; chosen here, 2026-11-23
NUM_POINTS = 1000  # at most, of a curve of values that are measured at every step; chosen here


class Interrupted(Exception):
    """Training was asked to stop, has saved its state and can be resumed."""


class NotFinite(ValueError):
    """A loss or a gradient became NaN or infinite."""


class Learner(Protocol):
    """What the loop trains. `network` is averaged into `averaged`, which is validated; `modules` and `optimizers`, with
    the same names, are saved in the state."""

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        ...

    @property
    def averaged(self) -> nn.Module:
        """The moving average of `network`, which is validated and published."""
        ...

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Name -> module; a saved state holds these and the average."""
        ...

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Name -> optimiser, one for each of `modules`; the loop sets their learning rates."""
        ...

    def prepare(self, step: int) -> Any:
        """Return the batch of a step, on the CPU. Threads call this ahead of time, so it may depend only on the
        step."""
        ...

    def learn(self, step: int, batch: Any) -> dict[str, float]:
        """Do one optimiser step and return its metrics, including `loss`, scaled so that their mean over the processes
        is the value for the whole batch."""
        ...

    def batch_keys(self, step: int) -> list[str]:
        """Return the keys of the rows of a step, for error messages."""
        ...

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Return the metrics of `network` on held-out rows, including `val_loss`; they must not be random. Empty if no
        row is held out: then the training does not stop early."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training. Everything but `timings` is the same for every run of the same configuration, however
    often it was interrupted.

    folder: with the training's state, metrics.jsonl and result. timings: seconds in total, resumed_from (the step at
    which this process began) and, since then, steps_per_second and loader_wait_share (0..1, the share of the time spent
    waiting for batches).
    """

    num_steps: int
    best_step: int
    stopped_early: bool
    metrics: dict[str, float]
    timings: dict[str, float]
    folder: Path


def learning_rate(step: int, config: LoopConfig) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine to FINAL_LEARNING_RATE of the peak
    (Loshchilov and Hutter, arXiv 1608.03983)."""
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
    """Train to the end, or to an early stop; the averaged weights are then in `learner.averaged`.

    folder: holds state/ and metrics.jsonl. fingerprint: of the training, to recognise its state. description: for the
    bar and messages. draw_samples: called every `sample_every` steps. Raises Interrupted, after saving, if
    `running.stop_requested` returns True; NotFinite for a NaN loss or gradient (the last saved state is from before
    it); ValueError if the state in `folder` is another training's. Values that depend on the clock go to the sink and
    the result's timings, not to metrics.jsonl.
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
        raise ValueError(f"{description}: the processes see different states in {folder}; they must share that folder")
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
    # Passed only if needed, so that TQDM_DISABLE has an effect.
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
                if held_out:
                    stopping.observe(step, held_out["val_loss"])
            if log is not None and (validates or step % point_every(config.num_steps) == 0):
                _write_log(log, step, point)
                running.sink(step, point | timings(step))
            if validates:
                shown = {name: f"{point[name]:.4f}" for name in ("loss", "val_loss") if name in point}
                bar.set_postfix(shown, refresh=False)
            if config.sample_every and step % config.sample_every == 0 and step < config.num_steps:
                draw_samples(step)
                put_back(learner.averaged)
            if stop_now:
                save(step)
                raise Interrupted(f"{description}: stopped after step {step} of {config.num_steps}; state saved")
            if save_now:
                save(step)
                last_saved = time.monotonic()
        save(step)  # so that no training is lost if exporting the result crashes
    seconds = seconds_before + time.monotonic() - began
    taken = {"seconds": seconds, "resumed_from": start, **(timings(step) if step > start else {})}
    return TrainingResult(step, stopping.best_step, step < config.num_steps, metrics, taken, folder)


def point_every(num_steps: int) -> int:
    """Return the number of steps between two points of a training's curves, which gives at most NUM_POINTS points."""
    return math.ceil(num_steps / NUM_POINTS)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics in a training's folder, one dict per point of its curves: `step`, the metrics of that step
    and, if it was validated, the held-out metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _open_log(path: Path, start: int):
    """Open the log, keeping the lines up to step `start`: later steps are trained again."""
    kept = []
    for line in path.read_text().splitlines() if start and path.is_file() else ():
        try:
            if json.loads(line)["step"] > start:
                break
        except ValueError:  # a kill cut this line short, so it is later than the state
            break
        kept.append(line)
    with atomic_file(path) as partial:
        partial.write_text("".join(line + "\n" for line in kept))
    return path.open("a", buffering=1)


def _write_log(log, step: int, metrics: dict[str, float]) -> None:
    log.write(json.dumps({"step": step, **metrics}) + "\n")
