"""The training loop of every network here: schedule, average, validate, save, stop, resume.

A step's rows and noise depend only on (seed, step) (order.py), so that a killed run resumes bitwise on CPU. States are
written while the training goes on (state.py); a request to stop (SIGTERM, SIGINT) saves one and ends the run. A step
whose loss or gradient is not finite changes nothing; MAX_SKIPPED of them in a row end the run, and the error names the
rows. Several processes (distributed.py) take every decision together and at the same step.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from emu_data.files import atomic_file
from emu_models.device import choose_device, peak_memory
from emu_models.training.distributed import put_back
from emu_models.training.early_stopping import EarlyStopping
from emu_models.training.ema import WeightAverage
from emu_models.training.jobs import LoopConfig
from emu_models.training.prefetch import Prefetcher
from emu_models.training.running import UNHEARD, Running
from emu_models.training.state import States

FINAL_LEARNING_RATE = 0.03  # share of the peak at which the cosine ends; chosen here, 2026-11-23
NUM_POINTS = 1000  # of a curve of values that are measured at every step, unless they lie too far apart; chosen here
MAX_STEPS_APART = 100  # two such points; chosen here
REPORT_SECONDS = 60.0  # at most, between two reports to the sink, which also gets steps between points; chosen here
MAX_SKIPPED = 10  # steps in a row that are not finite before a run ends; chosen here


class Interrupted(Exception):
    """Training was asked to stop, has saved its state and can be resumed."""


class NotFinite(ValueError):
    """The loss or the gradient was NaN or infinite for MAX_SKIPPED steps in a row."""


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
        """Compute the gradients with which the loop will call the optimisers, and return the step's metrics, including
        `loss`, scaled so that their mean over the processes is the value for the whole batch. Metrics that are not
        finite mean that the optimisers are not called."""
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

    folder: with the training's states, metrics.jsonl and result. timings: seconds in total, resumed_from (the step at
    which this process began) and, since then, what `Clock.measure` returns.
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


@dataclass
class Clock:
    """What a process measures about its own speed, since it began at step `start`. batch_size: rows per step."""

    start: int
    batch_size: int
    began: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Return the seconds since the process began."""
        return time.monotonic() - self.began

    def measure(self, step: int, seconds_waited: float) -> dict[str, float]:
        """Return steps_per_second, samples_per_second, loader_wait_share (0..1, the share of the time spent waiting for
        batches) and peak_memory_gib, of this process (device.peak_memory)."""
        seconds = self.seconds()
        speed = (step - self.start) / seconds
        return {
            "loader_wait_share": seconds_waited / seconds,
            "steps_per_second": speed,
            "samples_per_second": speed * self.batch_size,
            "peak_memory_gib": peak_memory(choose_device()) / 2**30,
        }


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

    folder: holds states/ and metrics.jsonl. fingerprint: of the training, to recognise its states. description: for the
    bar and messages. draw_samples: called every `sample_every` steps. Raises Interrupted, after saving, if
    `running.stop_requested` returns True; NotFinite after MAX_SKIPPED steps in a row without a finite loss and gradient
    (none of them is in the weights, and no state was saved since the first); ValueError if a state in `folder` is
    another training's. Values that depend on the clock go to the sink and the result's timings, not to metrics.jsonl.
    """
    world = running.world
    folder.mkdir(parents=True, exist_ok=True)
    average = WeightAverage(learner.averaged, config.ema_decay)
    stopping = EarlyStopping(config.max_rise)
    modules = {**learner.modules, "averaged": learner.averaged}
    states = States(
        folder / "states", fingerprint, modules, learner.optimizers, world, config.keep_states, config.keep_every
    )
    meta = states.load()
    start, seconds_before, metrics, num_skipped, in_a_row = 0, 0.0, {}, 0, 0
    if meta is not None:
        start, seconds_before, metrics = meta["step"], meta["seconds"], meta["metrics"]
        num_skipped, in_a_row = meta["skipped_steps"], meta["skipped_in_a_row"]
        stopping = EarlyStopping(**meta["stopping"])
    keep_log = _open_log(folder / "metrics.jsonl", start) if world.leads else nullcontext()
    clock = Clock(start, len(learner.batch_keys(start)))
    last_saved = last_reported = 0.0

    def describe() -> dict[str, Any]:
        if log is not None:
            os.fsync(log.fileno())  # a state is never ahead of its log
        return {
            "seconds": seconds_before + clock.seconds(),
            "metrics": metrics,
            "skipped_steps": num_skipped,
            "skipped_in_a_row": in_a_row,
            "stopping": asdict(stopping),
        }

    step = start
    # Passed only if needed, so that TQDM_DISABLE has an effect.
    silent: dict[str, Any] = {} if world.leads else {"disable": True}
    progress = tqdm(total=config.last_step, initial=start, desc=description, unit="step", mininterval=1, **silent)
    with (
        states,
        keep_log as log,
        progress as bar,
        Prefetcher(learner.prepare, start, config.last_step, choose_device()) as batches,
    ):
        while step < config.last_step and not stopping.should_stop:
            for optimizer in learner.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, config)
            learned = learner.learn(step, batches.get(step))
            minutes = (clock.seconds() - last_saved) / 60
            asked = {
                "/stop": running.stop_requested(),
                "/save": world.leads and not states.in_flight and minutes >= config.checkpoint_minutes,
                "/unwritten": not states.is_written,
            }
            agreed = world.mean({**learned, **{name: float(value) for name, value in asked.items()}})
            stop_now, save_now, unwritten = (agreed.pop(name) > 0 for name in asked)
            if states.in_flight and not unwritten:
                states.publish()
            broken = [f"{name} is {value}" for name, value in agreed.items() if not math.isfinite(value)]
            if broken:
                num_skipped, in_a_row, agreed = num_skipped + 1, in_a_row + 1, {}
            else:
                in_a_row = 0
                for optimizer in learner.optimizers.values():
                    optimizer.step()
                average.update(learner.network, step)
            agreed["skipped_steps"] = num_skipped
            if in_a_row == MAX_SKIPPED:
                keys = ", ".join(learner.batch_keys(step))
                raise NotFinite(
                    f"{description}: {' and '.join(broken)} at step {step}, the last of {MAX_SKIPPED} such steps in a "
                    f"row; its rows: {keys}"
                )
            point = {**agreed, "learning_rate": learning_rate(step, config)}
            step += 1
            metrics.update(agreed)
            bar.update()
            validates = step % config.validate_every == 0 or step == config.last_step
            if validates:
                held_out = learner.validate(learner.averaged)
                point |= held_out
                metrics.update(held_out)
                put_back(learner.averaged)
                if held_out:
                    stopping.observe(step, held_out["val_loss"])
            if log is not None:
                logs = validates or step % point_every(config.num_steps) == 0
                if logs:
                    _write_log(log, step, point)
                if logs or clock.seconds() - last_reported >= REPORT_SECONDS:
                    running.sink(step, point | clock.measure(step, batches.seconds_waited))
                    last_reported = clock.seconds()
            if validates:
                shown = {name: f"{point[name]:.4f}" for name in ("loss", "val_loss") if name in point}
                bar.set_postfix(shown, refresh=False)
            if config.sample_every and step % config.sample_every == 0 and step < config.last_step:
                draw_samples(step)
                put_back(learner.averaged)
            if stop_now:
                states.save(step, describe())
                raise Interrupted(f"{description}: stopped after step {step} of {config.last_step}; state saved")
            if config.keep_every and step % config.keep_every == 0:
                states.finish()
                save_now = True
            if save_now and not in_a_row:
                states.begin(step, describe())
                last_saved = clock.seconds()
        states.save(step, describe())  # so that no training is lost if exporting the result crashes
    taken = {"seconds": seconds_before + clock.seconds(), "resumed_from": start}
    taken |= clock.measure(step, batches.seconds_waited) if step > start else {}
    return TrainingResult(step, stopping.best_step, step < config.last_step, metrics, taken, folder)


def point_every(num_steps: int) -> int:
    """Return the number of steps between two points of a training's curves: at most NUM_POINTS points, or more if they
    would then be more than MAX_STEPS_APART apart."""
    return min(math.ceil(num_steps / NUM_POINTS), MAX_STEPS_APART)


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
