"""Properties of training: exact resumption, the objective's formulas, caches that cannot be stale, clear stops."""

import json
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.resnet import ResnetBlock2D
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from emu_dagster.training.train import train_on_all_rows
from emu_models.checkpoints import load_pipeline
from emu_models.diffusion.objective import MIN_SNR_GAMMA, denoising_loss, offset_noise
from emu_models.diffusion.schedule import build_scheduler
from emu_models.latent import denoiser_learner, trainings
from emu_models.latent.denoiser import denoise
from emu_models.training import jobs, prefetch
from emu_models.training.early_stopping import EarlyStopping
from emu_models.training.ema import WeightAverage, copy_for_averaging
from emu_models.training.loop import Interrupted, learning_rate, read_log
from emu_models.training.order import batch_indices, draw_rows, generator_for, held_out
from emu_models.training.running import Running
from emu_reports.held_out import read_held_out
from tests.shards import write_toy_shards
from tests.toy_training import (
    GENTLE,
    LOOP,
    autoencoder_job,
    denoiser_job,
    keep_single_precision,
    result_of,
    training_of,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of shards with 24 toy pictures, and the parquet of its rows."""
    folder = tmp_path_factory.mktemp("corpus")
    return write_toy_shards(folder, num_images=24)


@pytest.fixture(scope="module")
def autoencoder(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    trainings.train_autoencoder(*autoencoder_job(corpus, folder))
    return result_of(folder)


def stop_after(num_checks: int):
    """Return a stop request that becomes true at the given step."""
    seen = {"count": 0}

    def requested() -> bool:
        seen["count"] += 1
        return seen["count"] == num_checks

    return requested


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder).glob("*.safetensors")
    return load_file(file)


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.mark.parametrize("stop_at", [1, 4, 5])
def test_an_interrupted_autoencoder_resumes_bitwise(corpus, autoencoder, tmp_path, stop_at):
    """The adversary starts at step 3, so both sides of its start are interrupted."""
    with pytest.raises(Interrupted):
        trainings.train_autoencoder(*autoencoder_job(corpus, tmp_path, stop_requested=stop_after(stop_at)))
    assert not (result_of(tmp_path)).exists()
    result = trainings.train_autoencoder(*autoencoder_job(corpus, tmp_path))
    assert result.timings["resumed_from"] == stop_at
    assert_same_weights(result_of(tmp_path), autoencoder)


@pytest.mark.parametrize("stop_at", [1, 3])
def test_an_interrupted_denoiser_resumes_bitwise(corpus, autoencoder, tmp_path, stop_at):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainings.train_denoiser(*denoiser_job(corpus, whole, autoencoder))
    with pytest.raises(Interrupted):
        trainings.train_denoiser(*denoiser_job(corpus, parts, autoencoder, stop_requested=stop_after(stop_at)))
    trainings.train_denoiser(*denoiser_job(corpus, parts, autoencoder))
    written = [
        {path.relative_to(result_of(f)): path.read_bytes() for path in result_of(f).rglob("*") if path.is_file()}
        for f in (whole, parts)
    ]
    assert len(written[0]) > 5 and written[0].keys() == written[1].keys()
    assert not [name for name in written[0] if written[0][name] != written[1][name]]


def test_another_configuration_does_not_continue_from_the_state(corpus, tmp_path):
    with pytest.raises(Interrupted):
        trainings.train_autoencoder(*autoencoder_job(corpus, tmp_path, stop_requested=stop_after(3)))
    result = trainings.train_autoencoder(*autoencoder_job(corpus, tmp_path, replace(LOOP, learning_rate=2e-3)))
    assert result.timings["resumed_from"] == 0


def test_a_pipeline_draws_the_same_picture_again(corpus, autoencoder, tmp_path):
    trainings.train_denoiser(*denoiser_job(corpus, tmp_path, autoencoder))
    pipeline = trainings.load_pipeline(result_of(tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    first = pipeline(["a red square", "a blue square"], [1, 2], 3).images
    again = trainings.load_pipeline(result_of(tmp_path))(["a red square"], [1], 3).images
    assert first[0].size == (32, 32)
    assert np.abs(np.asarray(first[0], int) - np.asarray(again[0], int)).max() <= 1
    other = pipeline(["a red square"], [7], 3).images
    assert np.asarray(other[0]).tobytes() != np.asarray(first[0]).tobytes()
    with pytest.raises(ValueError, match="one seed per picture"):
        pipeline(["a"], [1, 2])
    meta = json.loads((result_of(tmp_path) / "meta.json").read_text())
    assert meta["result"]["num_steps"] == LOOP.num_steps
    assert not list(result_of(tmp_path).rglob("*.bin")) + list(result_of(tmp_path).rglob("*.pkl"))


def test_where_a_training_stopped_early_another_learns_all_rows_for_as_many_steps(corpus, autoencoder, tmp_path):
    """From the same start, by the same schedule; the curves that found the step stay beside the model."""

    class Trainer:
        def train(self, context, module, given, environment):
            return [jobs.from_json(one).run(Running()) for one in given["jobs"]]

    job, _ = denoiser_job(corpus, tmp_path, autoencoder, replace(LOOP, num_steps=12, validate_every=2, max_rise=1e-9))
    record: Any = SimpleNamespace(trainer=Trainer(), context=None, mlflow_environment={})
    whole = train_on_all_rows(record, job)
    assert whole.loop.stop_after and not whole.hold_out and whole.name == job.name
    report = whole.run(Running())
    model = Path(report["folder"]) / "result"
    meta, search = json.loads((model / "meta.json").read_text()), (model / "search.jsonl").read_text().splitlines()
    assert meta["num_held_out"] == 0 and meta["result"]["num_steps"] == whole.loop.stop_after
    assert json.loads(search[-1])["step"] == whole.loop.stop_after and "val_loss" in json.loads(search[-1])
    own = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert not any("val_loss" in line for line in own)
    assert [line["learning_rate"] for line in own] == [
        line["learning_rate"] for line in map(json.loads, search) if line["step"] in {one["step"] for one in own}
    ]
    found = read_held_out(model)
    assert found.by_another and found.published_step == whole.loop.stop_after
    assert found.describe().startswith("all rows were learned")


def test_tuning_continues_from_a_pipeline(corpus, autoencoder, tmp_path):
    trainings.train_denoiser(*denoiser_job(corpus, tmp_path / "first", autoencoder))
    job, _ = denoiser_job(corpus, tmp_path / "second", autoencoder, replace(LOOP, num_steps=2))
    job = replace(job, autoencoder=None, denoiser=None, start_from=result_of(tmp_path / "first"))
    trainings.train_denoiser(job)
    before, after = (weights(result_of(tmp_path / name) / "unet") for name in ("first", "second"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert_same_weights(result_of(tmp_path / "first") / "vae", result_of(tmp_path / "second") / "vae")


def test_a_network_learns_with_the_sizes_of_its_rows_and_draws_after_it_is_loaded(
    corpus, autoencoder, tmp_path, monkeypatch
):
    told = []

    def watch(*given):
        told.append(given[5])
        return denoise(*given)

    monkeypatch.setattr(denoiser_learner, "denoise", watch)
    job, running = denoiser_job(corpus, tmp_path, autoencoder)
    assert job.denoiser is not None
    job = replace(job, denoiser=replace(job.denoiser, size_conditioning=True))
    result = trainings.train_denoiser(job, running)
    assert told and all(sizes is not None and sizes.shape[1] == 6 for sizes in told)
    pipeline = load_pipeline(result.folder / "result")
    pipeline.set_progress_bar_config(disable=True)
    plain, cropped = (
        pipeline("a red square", 1, 2, crops_coords_top_left=corner, output_type="np").images
        for corner in ((0, 0), (500, 0))
    )
    assert plain.shape == (1, 32, 32, 3) and np.abs(plain - cropped).max() > 1e-4


def test_a_training_that_encodes_on_the_fly_resumes_to_the_bit(corpus, autoencoder, tmp_path):
    keep_single_precision()
    for name in ("whole", "stopped"):
        job, running = denoiser_job(corpus, tmp_path / name, autoencoder, prompts=())
        job = replace(job, encode="on_the_fly")
        if name == "stopped":
            with pytest.raises(Interrupted):
                trainings.train_denoiser(job, replace(running, stop_requested=iter([False, False, True]).__next__))
        trainings.train_denoiser(job, running)
        assert not list((tmp_path / name / "cache").rglob("*.safetensors"))
    assert_same_weights(result_of(tmp_path / "whole") / "unet", result_of(tmp_path / "stopped") / "unet")


@given(shift=st.floats(0.25, 8))
@settings(max_examples=10)
def test_a_shifted_schedule_has_so_many_times_the_noise_at_every_timestep(shift, tmp_path_factory):
    plain, shifted = build_scheduler(), build_scheduler(shift)
    shifted.save_pretrained(folder := tmp_path_factory.mktemp("scheduler"))
    loaded: Any = DDIMScheduler.from_pretrained(folder)
    ratios = [((1 - s.alphas_cumprod) / s.alphas_cumprod).sqrt()[:-1] for s in (plain, shifted, loaded)]
    assert torch.allclose(ratios[1], shift * ratios[0], rtol=1e-2)  # betas are kept in single precision
    assert torch.equal(ratios[1], ratios[2])
    assert shifted.alphas_cumprod[-1] == 0  # the last timestep is still pure noise


@given(losses=st.lists(st.floats(0.1, 10), min_size=1, max_size=20), max_rise=st.floats(0.01, 2))
def test_early_stopping_stops_at_the_first_loss_that_rose_too_far(losses, max_rise):
    stopping = EarlyStopping(max_rise)
    for step, loss in enumerate(losses):
        stopping.observe(step, loss)
        assert stopping.best_step == int(np.argmin(losses[: step + 1]))
        assert stopping.should_stop == (loss > min(losses[: step + 1]) * (1 + max_rise))


def test_at_a_loss_of_zero_no_rise_is_too_far():
    stopping = EarlyStopping(0.0)
    for step, loss in enumerate([1.0, 100.0]):
        stopping.observe(step, loss)
    assert not stopping.should_stop


@given(num_rows=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_every_pass_sees_every_row_once(num_rows, batch_size, seed):
    num_steps = -(-3 * num_rows // batch_size)
    seen = np.concatenate([batch_indices(step, batch_size, num_rows, seed) for step in range(num_steps)])
    for start in range(0, len(seen) - num_rows + 1, num_rows):
        assert sorted(seen[start : start + num_rows]) == list(range(num_rows))


def test_steps_and_purposes_draw_different_numbers():
    draws = {torch.rand(1, generator=generator_for(0, s, p)).item() for s in range(20) for p in range(3)}
    assert len(draws) == 60
    assert torch.rand(1, generator=generator_for(1, 5)) == torch.rand(1, generator=generator_for(1, 5))


def test_what_a_subset_holds_out_is_held_out_of_the_whole_too():
    keys = [f"{i:09d}" for i in range(400)]
    whole = {key for key, held in zip(keys, held_out(keys, 0.1, 4), strict=True) if held}
    subset = keys[::3]
    part = {key for key, held in zip(subset, held_out(subset, 0.1, 4), strict=True) if held}
    assert part == whole & set(subset)
    assert 20 <= len(whole) <= 60


def test_learning_rate_warms_up_and_falls():
    config = replace(LOOP, num_steps=100, warmup_steps=10)
    rates = [learning_rate(step, config) for step in range(100)]
    assert max(rates) <= config.learning_rate
    assert rates[0] < rates[5] < rates[9] and rates[9] > rates[50] > rates[99] > 0


def test_the_average_moves_towards_the_weights():
    module = torch.nn.Linear(1, 1)
    average = WeightAverage(copy_for_averaging(module), 0.9)
    with torch.no_grad():
        module.weight.add_(1.0)
    averaged = average.averaged.get_parameter("weight")
    before = averaged.clone()
    for step in range(200):
        average.update(module, step)
    assert torch.allclose(averaged, module.weight, atol=1e-4)
    assert not torch.allclose(before, module.weight)


def test_offset_noise_is_one_draw_per_channel():
    normal, _ = draw_rows(0, 0, np.arange(64), 4 * 16 * 16 + 4)
    plain, shift = normal[:, :-4].view(64, 4, 16, 16), normal[:, -4:]
    assert torch.equal(offset_noise(plain, shift, 0.0), plain)
    difference = offset_noise(plain, shift, 0.5) - plain
    assert torch.allclose(difference, difference[:, :, :1, :1].expand_as(difference), atol=1e-5)
    assert difference.std().item() == pytest.approx(0.5, rel=0.2)


def test_a_row_draws_by_its_position_alone_and_nothing_twice():
    normal, uniform = draw_rows(3, 7, np.arange(50), 200, 2)
    some = np.array([41, 5, 5])
    for whole, part in zip((normal, uniform), draw_rows(3, 7, some, 200, 2), strict=True):
        assert torch.equal(whole[some], part)
    others = [draw_rows(seed, step, np.arange(50), 200)[0] for seed, step in ((3, 8), (4, 7), (7, 3))]
    everything = torch.cat([normal, *others])
    assert len(everything.unique()) > 0.999 * everything.numel()
    assert torch.corrcoef(everything).fill_diagonal_(0).abs().max() < 0.4  # 0.07 is a standard deviation
    assert everything.mean().abs() < 0.02 and everything.std().item() == pytest.approx(1, abs=0.02)
    assert uniform.min() >= 0 and uniform.max() < 1


def test_denoising_loss_is_zero_at_the_true_velocity_and_weighted_as_min_snr_says():
    generator = torch.Generator().manual_seed(0)
    z0, noise = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    a2 = torch.tensor([0.99, 0.5, 0.2])
    scale = a2[:, None, None, None]
    v = scale.sqrt() * noise - (1 - scale).sqrt() * z0
    assert denoising_loss(v, z0, noise, a2).abs().max() < 1e-10
    # ||v - v'||^2 = (SNR + 1) ||x0 - x0'||^2: an error in v weighs min(SNR, gamma) times its error in x0
    noisy = scale.sqrt() * z0 + (1 - scale).sqrt() * noise
    wrong = v + 0.1
    x0 = scale.sqrt() * noisy - (1 - scale).sqrt() * wrong
    snr = a2 / (1 - a2)
    expected = snr.clamp(max=MIN_SNR_GAMMA) * (x0 - z0).square().flatten(1).mean(1)
    assert torch.allclose(denoising_loss(wrong, z0, noise, a2), expected, rtol=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_an_error_in_z0_weighs_the_same_whatever_is_predicted(prediction_type):
    """min(SNR, gamma) times the squared error in z0, by min-SNR."""
    generator = torch.Generator().manual_seed(0)
    z0, noise = (torch.randn(3, 2, 4, 4, generator=generator).double() for _ in range(2))
    a2_B = torch.tensor([0.98, 0.5, 0.2]).double()
    a2 = a2_B[:, None, None, None]
    noisy, wrong_z0 = a2.sqrt() * z0 + (1 - a2).sqrt() * noise, z0 + 0.1
    wrong_noise = (noisy - a2.sqrt() * wrong_z0) / (1 - a2).sqrt()
    predicted = {
        "epsilon": wrong_noise,
        "v_prediction": a2.sqrt() * wrong_noise - (1 - a2).sqrt() * wrong_z0,
        "sample": wrong_z0,
    }[prediction_type]
    expected = (a2_B / (1 - a2_B)).clamp(max=MIN_SNR_GAMMA) * 0.01
    assert torch.allclose(denoising_loss(predicted, z0, noise, a2_B, prediction_type), expected)
    with pytest.raises(ValueError, match="prediction_type is 'flow'"):
        denoising_loss(predicted, z0, noise, a2_B, "flow")


def test_the_scheduler_ends_in_pure_noise_and_undoes_a_known_velocity():
    scheduler = build_scheduler()
    assert scheduler.alphas_cumprod[-1] < 1e-6
    scheduler.set_timesteps(10)
    z0 = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    z = noise = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    for t in scheduler.timesteps:
        a2 = scheduler.alphas_cumprod[t]
        (z, *_) = scheduler.step(a2.sqrt() * noise - (1 - a2).sqrt() * z0, int(t), z, return_dict=False)
    assert torch.allclose(z, z0, atol=1e-3)


GOLDEN = Path(__file__).with_name("golden_losses.json")
REGENERATE = "EMU_REGENERATE_GOLDEN"  # set to 1, the tests write the file anew: for intended changes


def test_losses_are_those_of_the_golden_file(corpus, tmp_path):
    """The first losses of both networks, so that a refactoring that changes the training shows.

    rtol 1e-4: kinds of CPU round differently, and a handful of steps does not yet drive the runs apart.
    """
    keep_single_precision()
    loop = replace(LOOP, num_steps=10, validate_every=1)
    trainings.train_autoencoder(*autoencoder_job(corpus, tmp_path / "autoencoder", loop))
    trainings.train_denoiser(
        *denoiser_job(corpus, tmp_path / "denoiser", result_of(tmp_path / "autoencoder"), loop, prompts=())
    )
    found = {
        name: {
            kind: [round(line[kind], 8) for line in read_log(training_of(tmp_path / name))]
            for kind in ("loss", "val_loss")
        }
        for name in ("autoencoder", "denoiser")
    }
    if os.environ.get(REGENERATE):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for name, curves in golden.items():
        for kind, values in curves.items():
            assert found[name][kind] == pytest.approx(values, rel=1e-4), f"{name}: {kind}"


def test_small_parts_add_up_to_the_whole_batch(corpus, autoencoder, tmp_path):
    keep_single_precision()
    for name, size in {"whole": None, "parts": 2}.items():
        training = {"batch_size": 5, "micro_batch_size": size}
        trainings.train_denoiser(*denoiser_job(corpus, tmp_path / name, autoencoder, GENTLE, training, prompts=()))
    whole, parts = (weights(result_of(tmp_path / name) / "unet") for name in ("whole", "parts"))
    assert (
        max((whole[name] - parts[name]).abs().max().item() for name in whole) < 2e-5
    )  # 1.1e-5 was seen with one thread


def test_gradient_checkpointing_changes_no_weight(corpus, autoencoder, tmp_path, monkeypatch):
    """Bitwise; and blocks are recomputed, which shows in how often the network's parts run."""
    counts: Counter[bool] = Counter()
    forward = ResnetBlock2D.forward

    def counted(self, *args, **kwargs):
        counts[again] += torch.is_grad_enabled()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ResnetBlock2D, "forward", counted)
    for again in (False, True):
        job = denoiser_job(
            corpus, tmp_path / str(again), autoencoder, training={"gradient_checkpointing": again}, prompts=()
        )
        trainings.train_denoiser(*job)
    assert counts[True] > 1.5 * counts[False] > 0
    assert_same_weights(result_of(tmp_path / "True") / "unet", result_of(tmp_path / "False") / "unet")


def test_sheets_of_samples_are_drawn_during_training(corpus, autoencoder, tmp_path):
    sheets = {}
    loop = replace(LOOP, sample_every=2)
    trainings.train_denoiser(*denoiser_job(corpus, tmp_path, autoencoder, loop, picture_sink=sheets.__setitem__))
    assert {step: sheet.size for step, sheet in sheets.items()} == {2: (256, 32), 4: (256, 32)}
    assert np.asarray(sheets[2]).tobytes() != np.asarray(sheets[4]).tobytes()


@pytest.mark.parametrize(("device", "num_workers"), [("cuda", 1), ("cuda", 3), ("cpu", 1)])
def test_batches_come_in_order_however_long_each_takes(monkeypatch, device, num_workers):
    monkeypatch.setattr(prefetch, "NUM_WORKERS", num_workers)

    def prepare(step):
        if step == 7:
            raise ValueError("row 7 is broken")
        time.sleep(0.002 * (step % 3))
        return step

    with prefetch.Prefetcher(prepare, 2, 9, torch.device(device)) as batches:
        assert [batches.get(step) for step in range(2, 7)] == [2, 3, 4, 5, 6]
        with pytest.raises(ValueError, match="row 7"):
            batches.get(7)
    assert batches.seconds_waited > 0
