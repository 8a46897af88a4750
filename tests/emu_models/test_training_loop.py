"""The loop with learners of one weight: states, steps that are not finite, curves, early stops."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emu_models.training import loop, state
from emu_models.training.ema import copy_for_averaging
from emu_models.training.loop import MAX_SKIPPED, Interrupted, NotFinite, learning_rate, read_log, run_training
from emu_models.training.running import Running
from tests.toy_training import LOOP, newest_state, read_state

EVERY_STEP = replace(LOOP, num_steps=30, validate_every=100, checkpoint_minutes=0.0, keep_every=1, ema_decay=0.0)


class Counting:
    """A learner whose weight counts the steps that were done, and whose held-out loss falls. broken: steps whose
    gradient is not finite."""

    def __init__(self, broken: tuple[int, ...] = (), held_out: Callable[[float], float] = lambda done: 1 / (done + 1)):
        self.network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.network.weight)
        self.averaged = copy_for_averaging(self.network)
        self.modules = {"network": self.network}
        self.optimizers: dict[str, Any] = {"network": torch.optim.Adam(self.network.parameters())}
        self.optimizers["network"].register_step_post_hook(self._count)
        self.done, self.broken, self.held_out = 0, broken, held_out

    @torch.no_grad()
    def _count(self, *of_hook: Any) -> None:  # the optimiser's own step is small
        self.done = round(self.network.weight.item()) + 1
        self.network.weight.fill_(self.done)

    def prepare(self, step: int) -> int:
        return step

    def learn(self, step: int, batch: int) -> dict[str, float]:
        self.network.weight.grad = torch.ones(1, 1)
        return {"loss": 1.0 / (step + 1), "grad_norm": float("nan") if batch in self.broken else 1.0}

    def batch_keys(self, step: int) -> list[str]:
        return [f"key{step}"]

    def validate(self, network: torch.nn.Module) -> dict[str, float]:
        weight = network.get_parameter("weight").item()
        return {"val_loss": self.held_out(weight)}


def weight_in(place: Path) -> float:
    return read_state(place)["network/weight"].item()


def stop_at(step: int) -> Running:
    counts = iter(range(1, 1000))
    return Running(stop_requested=lambda: next(counts) == step)


def test_training_goes_on_while_a_state_is_written_and_the_state_is_of_its_step(tmp_path, monkeypatch):
    """The disk is slow: the first state is written only once five more steps are done."""
    config = replace(EVERY_STEP, keep_every=0, keep_states=100, num_steps=10)
    learner, goes_on, save_file = Counting(), threading.Event(), state.save_file

    def slow(*arguments: Any) -> None:
        assert goes_on.wait(60)
        save_file(*arguments)

    def stop_requested() -> bool:
        if learner.done >= 6:
            goes_on.set()
        return False

    monkeypatch.setattr(state, "save_file", slow)
    run_training(learner, config, tmp_path, "x", "slow", Running(stop_requested=stop_requested))
    places = sorted((tmp_path / "states").iterdir())
    assert places[0].name == "000000001" and places[-1].name == "000000010"
    assert all(weight_in(place) == int(place.name) for place in places)
    assert not {f"{step:09d}" for step in range(2, 7)} & {place.name for place in places}  # one save in flight


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("keep_every", [0, 4])
def test_the_last_states_and_every_kth_stay(tmp_path, keep, keep_every):
    config = replace(EVERY_STEP, keep_states=keep, keep_every=keep_every)
    for more in (9, 10):
        with pytest.raises(Interrupted):
            run_training(Counting(), config, tmp_path, "x", "kept", stop_at(more))
    kept = [int(place.name) for place in sorted((tmp_path / "states").iterdir())]
    if keep_every:
        assert {4, 8, 12, 16} <= set(kept)
    assert len([step for step in kept if not keep_every or step % keep_every]) <= keep
    assert kept[-1] == 19 and len(kept) >= keep


def test_what_a_killed_save_left_is_never_chosen_and_goes(tmp_path):
    with pytest.raises(Interrupted):
        run_training(Counting(), EVERY_STEP, tmp_path, "x", "killed", stop_at(5))
    whole = newest_state(tmp_path / "states")
    half = whole.with_name(f".000000006{state.TEMPORARY_MARK}00000006")
    half.mkdir()
    (half / "meta.json").write_text((whole / "meta.json").read_text())
    (half / "00000-of-00001.safetensors").write_bytes(b"half")
    result = run_training(Counting(), EVERY_STEP, tmp_path, "x", "killed")
    assert (result.timings["resumed_from"], result.num_steps) == (5, 30)
    assert not [place for place in (tmp_path / "states").iterdir() if place.name.startswith(".")]


def test_states_that_cannot_be_used_are_refused_and_stay(tmp_path):
    with pytest.raises(Interrupted):
        run_training(Counting(), EVERY_STEP, tmp_path, "x", "refused", stop_at(5))
    place = newest_state(tmp_path / "states")
    with pytest.raises(ValueError, match="the state of another training"):
        run_training(Counting(), EVERY_STEP, tmp_path, "y", "refused")
    (place / "00000-of-00001.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"lacks 00000-of-00001\.safetensors: bring it back, or move"):
        run_training(Counting(), EVERY_STEP, tmp_path, "x", "refused")
    assert newest_state(tmp_path / "states") == place
    place.rename(tmp_path / "moved")
    assert run_training(Counting(), EVERY_STEP, tmp_path, "x", "refused").timings["resumed_from"] == 4
    (tmp_path / "state").mkdir()
    with pytest.raises(ValueError, match="saved by an earlier version and cannot be continued: move it away"):
        run_training(Counting(), EVERY_STEP, tmp_path, "x", "refused")


def test_a_disk_that_is_full_ends_the_run_and_leaves_the_state_before(tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        run_training(Counting(), EVERY_STEP, tmp_path, "x", "full", stop_at(5))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(state, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            run_training(Counting(), EVERY_STEP, tmp_path, "x", "full")
    result = run_training(Counting(), EVERY_STEP, tmp_path, "x", "full")
    assert result.timings["resumed_from"] == 5


BROKEN = (0, 3, 4, 5, 11)


def test_steps_that_are_not_finite_change_nothing_and_are_counted_however_often_it_is_stopped(tmp_path):
    config = replace(EVERY_STEP, num_steps=15, ema_decay=0.9)
    learner, sent = Counting(BROKEN), {}
    whole = run_training(learner, config, tmp_path / "whole", "x", "broken", Running(sent.__setitem__))
    assert learner.network.weight.item() == 15 - len(BROKEN) and whole.metrics["skipped_steps"] == len(BROKEN)
    for step, line in sent.items():
        assert line["skipped_steps"] == sum(broken < step for broken in BROKEN)
        assert ("loss" in line) == (step - 1 not in BROKEN)
    for step in (4, 2, 6):  # after steps 4, 6 and 12; the first two within a run of broken ones
        with pytest.raises(Interrupted):
            run_training(Counting(BROKEN), config, tmp_path / "parts", "x", "broken", stop_at(step))
    run_training(Counting(BROKEN), config, tmp_path / "parts", "x", "broken")
    states = [read_state(newest_state(tmp_path / name / "states")) for name in ("whole", "parts")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert logs[0] == logs[1] and b"NaN" not in logs[0]


def test_too_many_in_a_row_end_the_run_name_the_rows_and_leave_the_last_good_state(tmp_path):
    broken = tuple(range(3, 40))
    for _ in range(2):  # a stop in between does not give it more of them
        counting = Counting(broken)
        with pytest.raises(Interrupted):
            run_training(counting, replace(EVERY_STEP, keep_every=0), tmp_path, "x", "diverging", stop_at(4))
    last = 3 + MAX_SKIPPED - 1
    with pytest.raises(NotFinite, match=f"grad_norm is nan at step {last}.*its rows: key{last}$"):
        run_training(Counting(broken), replace(EVERY_STEP, keep_every=0), tmp_path, "x", "diverging")
    assert weight_in(newest_state(tmp_path / "states")) == 3


def test_early_stopping_keeps_the_weights_of_that_moment(tmp_path):
    losses = {2: 2.0, 4: 1.0, 6: 2.4, 8: 2.6, 10: 9.0}
    config = replace(LOOP, num_steps=100, max_rise=1.5, ema_decay=0.0)
    learner = Counting(held_out=lambda done: losses[round(done)])
    result = run_training(learner, config, tmp_path, "x", "overfitting")
    assert (result.best_step, result.num_steps, result.stopped_early) == (4, 8, True)
    assert learner.averaged.get_parameter("weight").item() == 8
    assert [line["step"] for line in read_log(tmp_path) if "val_loss" in line] == [2, 4, 6, 8]


@pytest.mark.parametrize("num_steps", [7, 40])
def test_a_curve_has_a_point_per_step_or_as_many_as_can_be_drawn(tmp_path, monkeypatch, num_steps):
    """MLflow gets what is in the training's log, and so on its page."""
    monkeypatch.setattr(loop, "NUM_POINTS", 20)
    sent: dict[int, dict[str, float]] = {}
    config = replace(LOOP, num_steps=num_steps, validate_every=num_steps // 2, max_rise=0)
    run_training(Counting(), config, tmp_path, "x", "curve", Running(sent.__setitem__))
    lines = {line.pop("step"): line for line in read_log(tmp_path)}
    assert lines.keys() == sent.keys() and min(num_steps, 20) <= len(lines) <= 20 + 2
    validated = {step for step, line in lines.items() if "val_loss" in line}
    assert validated == {step for step in range(1, num_steps + 1) if step % (num_steps // 2) == 0 or step == num_steps}
    for step, line in lines.items():
        assert line["loss"] == 1.0 / step and line["learning_rate"] == learning_rate(step - 1, config)
        assert line.items() <= sent[step].items()
        assert sent[step]["samples_per_second"] > 0 and sent[step]["peak_memory_gib"] > 0.01


def test_points_lie_no_further_apart_than_stated_and_mlflow_gets_more_by_the_clock(tmp_path, monkeypatch):
    assert loop.point_every(600_000) == loop.MAX_STEPS_APART and loop.point_every(50_000) == 50
    monkeypatch.setattr(loop, "MAX_STEPS_APART", 10)
    monkeypatch.setattr(loop, "NUM_POINTS", 1)
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    sent: dict[int, dict[str, float]] = {}
    config = replace(EVERY_STEP, checkpoint_minutes=1e9, keep_every=0)
    run_training(Counting(), config, tmp_path, "x", "curve", Running(sent.__setitem__))
    assert list(sent) == list(range(1, 31))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert not {"samples_per_second", "steps_per_second", "peak_memory_gib"} & {name for line in lines for name in line}
