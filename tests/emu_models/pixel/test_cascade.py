"""A cascade in pixels is trained in stages, used like any other model, and keeps the colours of its small pictures."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from emu_models.checkpoints import load_pipeline
from emu_models.drawing import draw
from emu_models.folders import Found, inspect_checkpoint, inspect_tunable
from emu_models.latent.jobs import DenoiserConfig
from emu_models.pixel.jobs import CascadeJob
from emu_models.pixel.pipeline import EmuCascadePipeline
from emu_models.pixel.trainings import train_cascade
from emu_models.training.jobs import from_json, to_json
from emu_models.training.loop import Interrupted
from emu_models.training.running import Running
from tests.shards import write_toy_shards
from tests.toy_cascade import NETWORK, base_job, upscaler_job
from tests.toy_training import LOOP, keep_single_precision, result_of

PROMPTS, SEEDS = ["red square", "blue square"], [3, 4]


@dataclass(frozen=True)
class Trained:
    """Folders of results, and the corpus they were trained on."""

    corpus: tuple[Path, Path]
    base: Path
    cascade: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    keep_single_precision()
    folder = tmp_path_factory.mktemp("cascade")
    corpus = write_toy_shards(folder, num_images=24)
    base = train_cascade(base_job(corpus, folder / "base")).folder / "result"
    cascade = train_cascade(upscaler_job(corpus, folder / "upscaler", base)).folder / "result"
    return Trained(corpus, base, cascade)


def read(folder: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


def same(first: Path, second: Path, part: str) -> bool:
    a, b = read(first, part), read(second, part)
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def pictures(pipeline: Any, prompts: list[str], seeds: list[int], **asked: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return np.stack([np.asarray(image, int) for image in draw(pipeline, prompts, seeds, 3, 2.0, **asked)])


def stop_at(step: int) -> Running:
    calls = SimpleNamespace(number=0)

    def stop() -> bool:
        calls.number += 1
        return calls.number == step

    return Running(stop_requested=stop)


@pytest.mark.parametrize("stage", ["base", "upscaler"])
def test_a_training_that_was_stopped_ends_with_the_same_bytes(trained, tmp_path, stage):
    job = base_job(trained.corpus, tmp_path)
    if stage == "upscaler":
        job = upscaler_job(trained.corpus, tmp_path, trained.base)
    with pytest.raises(Interrupted):
        train_cascade(job, stop_at(3))
    train_cascade(job)
    whole, parts = trained.base if stage == "base" else trained.cascade, result_of(tmp_path)
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(files) > 10 and Path("preview.png") in files
    assert not [name for name in files if (whole / name).read_bytes() != (parts / name).read_bytes()]


def test_tuning_changes_one_network_after_the_other(trained, tmp_path):
    """The upscaler's result has the tuned base, and both have the shape of a whole cascade."""
    continued: dict[str, Any] = {"denoiser": None, "ratio": None}
    base = base_job(trained.corpus, tmp_path / "base", start_from=trained.cascade, **continued)
    tuned = train_cascade(base).folder / "result"
    assert not same(tuned, trained.base, "unet") and same(tuned, trained.cascade, "super_unet")
    upscaler = upscaler_job(trained.corpus, tmp_path / "up", tuned, start_from=trained.cascade, **continued)
    whole = train_cascade(upscaler).folder / "result"
    assert same(whole, tuned, "unet") and not same(whole, trained.cascade, "super_unet")
    meta = json.loads((whole / "meta.json").read_text())
    assert set(meta["weights"]) == {"base", "start_from"} and "val_loss" in meta["result"]["metrics"]
    assert np.abs(pictures(load_pipeline(whole), PROMPTS, SEEDS) - pictures(load_pipeline(tuned), PROMPTS, SEEDS)).any()


def test_a_finished_training_is_not_repeated_and_another_base_is_another_training(trained, tmp_path):
    job = upscaler_job(trained.corpus, trained.cascade.parents[2], trained.base)
    assert train_cascade(job).timings == {}
    other = shutil.copytree(trained.base, tmp_path / "base")
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(Interrupted):
        train_cascade(replace(job, base=other), stop_at(1))


def test_plain_diffusers_draws_the_same_pictures_with_the_saved_code(trained, tmp_path):
    """Also where emu is not installed: a process of its own sees only the folder."""
    expected = pictures(load_pipeline(trained.cascade), PROMPTS, SEEDS)
    code = (
        "import sys, numpy as np\n"
        "sys.path = [p for p in sys.path if p not in ('', sys.argv[3])]\n"
        "from diffusers import DiffusionPipeline\n"
        "p = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True, local_files_only=True)\n"
        "p.set_progress_bar_config(disable=True)\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'emu_models']\n"
        f"np.save(sys.argv[2], p({PROMPTS!r}, {SEEDS!r}, 3, 2.0, output_type='np').images)\n"
    )
    root = str(Path(__file__).parents[3])
    given = [str(trained.cascade), str(tmp_path / "pictures.npy"), root]
    subprocess.run([sys.executable, "-c", code, *given], check=True, cwd=tmp_path)
    assert np.abs(255 * np.load(tmp_path / "pictures.npy") - expected).max() <= 1


def test_a_picture_depends_only_on_its_prompt_and_seed(trained):
    pipeline = load_pipeline(trained.cascade)
    together = pictures(pipeline, PROMPTS, SEEDS)
    assert together.shape == (2, 32, 32, 3)
    assert np.abs(together[1] - pictures(pipeline, PROMPTS[1:], SEEDS[1:])[0]).max() <= 1
    assert np.abs(pictures(pipeline, PROMPTS[1:], [9])[0] - together[1]).max() > 1


def test_both_stages_are_guided_and_take_their_own_numbers_of_steps(trained):
    pipeline, sizes = load_pipeline(trained.cascade), {"unet": [], "super_unet": []}
    pipeline.set_progress_bar_config(disable=True)
    for name, seen in sizes.items():
        getattr(pipeline, name).register_forward_pre_hook(lambda module, args, seen=seen: seen.append(len(args[0])))
    pipeline("red square", 1, 3, 2.0, num_super_steps=2)
    assert sizes == {"unet": [2, 2, 2], "super_unet": [2, 2]}
    for seen in sizes.values():
        seen.clear()
    pipeline("red square", 1, 2, 1.0, num_super_steps=1)
    assert sizes == {"unet": [1, 1], "super_unet": [1]}


def test_a_base_alone_draws_smooth_pictures_of_the_full_size(trained):
    pipeline = load_pipeline(trained.base)
    assert pipeline.super_unet is None and isinstance(load_pipeline(trained.cascade), EmuCascadePipeline)
    x = pipeline("red square", 1, 2, output_type="latent").images
    assert x.shape == (1, 3, 32, 32) and pipeline("red square", 1, 2, height=64, width=32).images[0].size == (32, 64)


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_an_upscaled_picture_has_the_mean_colour_of_the_small_one(trained, level):
    """Within 2 / 255, whatever so little training has taught the network."""
    pipeline = load_pipeline(trained.cascade)
    pipeline.set_progress_bar_config(disable=True)
    colours = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    small = torch.nn.functional.interpolate(colours, size=8, mode="bilinear")
    small[0], small[1] = 1.0, -0.97  # white and almost black
    given = {"small": small, "augmentation": level, "output_type": "np"}
    images = pipeline([""] * 4, [1, 2, 3, 4], 2, 2.0, **given).images
    wanted = (small.mean((2, 3)).numpy() + 1) / 2
    assert np.abs(images.mean((1, 2)) - wanted).max() < 2 / 255


def test_a_cascade_is_drawn_with_but_not_tuned_as_a_single_denoiser(trained, tmp_path):
    assert inspect_checkpoint(trained.cascade) == Found("EmuCascadePipeline", None)
    with pytest.raises(ValueError, match="EmuCascadePipeline, which quality_tuned cannot tune"):
        inspect_tunable(trained.cascade)
    broken = shutil.copytree(trained.cascade, tmp_path / "broken")
    config = broken / "super_unet" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 6', '"in_channels": 4'))
    with pytest.raises(ValueError, match="super_unet/ takes 4 channels and gives 3"):
        inspect_checkpoint(broken)
    shutil.rmtree(broken / "super_scheduler")
    with pytest.raises(ValueError, match="lacks super_scheduler/"):
        inspect_checkpoint(broken)


def test_what_does_not_fit_is_refused_before_a_step(trained, tmp_path):
    base, upscaler = base_job(trained.corpus, tmp_path), upscaler_job(trained.corpus, tmp_path, trained.base)
    together: list[tuple[CascadeJob, dict[str, Any], str]] = [
        (upscaler, {"base": None}, "base is missing"),
        (base, {"base": trained.base}, "base is for upscalers"),
        (base, {"start_from": trained.base}, "denoiser is for new networks"),
        (base, {"ratio": None}, "ratio is missing"),
        (base, {"crop": 16}, "crop is 16"),
        (upscaler, {"augmentation": 0.7}, "augmentation is 0.7"),
        (upscaler, {"denoiser": replace(NETWORK, size_conditioning=True)}, "size_conditioning"),
    ]
    for job, changes, wrong in together:
        with pytest.raises(ValueError, match=wrong):
            replace(job, **changes).check()
        with pytest.raises(ValueError, match=wrong):
            train_cascade(replace(job, **{**changes, "shards": tmp_path / "unread"}))
    with_folders: list[tuple[CascadeJob, dict[str, Any], str]] = [
        (upscaler, {"crop": 14}, "crop is 14"),
        (upscaler, {"ratio": 2}, "ratio is 2, but its cascade was begun with 4"),
        (upscaler, {"num_text_tokens": 9}, "num_text_tokens is 9"),
        (upscaler, {"resolution": 40}, "resolution is 40"),
        (upscaler, {"start_from": trained.base, "denoiser": None}, "has no upscaler"),
    ]
    for job, changes, wrong in with_folders:
        with pytest.raises(ValueError, match=wrong):
            train_cascade(replace(job, **changes))
    pipeline = load_pipeline(trained.cascade)
    for asked, wrong in (
        ({"height": 36}, "multiples of 16"),
        ({"augmentation": 1.5}, "between 0 and 1"),
        ({"small": torch.zeros(1, 3, 4, 4)}, "small pictures are"),
    ):
        with pytest.raises(ValueError, match=wrong):
            pipeline("red square", 1, 1, **asked)


def test_jobs_are_written_as_json_and_come_back(trained, tmp_path):
    job = upscaler_job(trained.corpus, tmp_path, trained.base, loop=LOOP, crop=16, patch=2)
    assert from_json(json.loads(json.dumps(to_json(job)))) == job
    assert isinstance(job.denoiser, DenoiserConfig) and isinstance(load_pipeline(trained.base), DiffusionPipeline)
