"""EmuMaskedPipeline is trained, saved, loaded and called like the other families' pipelines."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from emu_models.checkpoints import denoiser_of, latents_of, load_pipeline
from emu_models.drawing import draw
from emu_models.folders import Found, inspect_checkpoint, inspect_tunable
from emu_models.masked.building import build_transformer
from emu_models.masked.pipeline import EmuMaskedPipeline
from emu_models.masked.tokenizer import PictureTokenizer
from emu_models.masked.trainings import train_masked, train_tokenizer
from emu_models.text import encode_prompts, load_text_encoders
from emu_models.training.loop import Interrupted
from emu_models.training.running import UNHEARD, Running
from tests.emu_models.latent.test_pipeline import ALONE
from tests.shards import write_toy_shards
from tests.toy_masked import SMALL, masked_job, tokenizer_job
from tests.toy_training import LOOP, result_of

ORDERS = ("halton", "confidence")


@pytest.fixture
def pipeline() -> EmuMaskedPipeline:
    torch.manual_seed(0)
    encoders = load_text_encoders()
    tokenizer = PictureTokenizer((5, 4), widths=(16, 32)).eval()
    transformer = build_transformer(SMALL, 20, encoders.token_width, encoders.pooled_width).eval()
    torch.nn.init.normal_(transformer.mlm_layer.conv2.weight)  # a new one draws without looking at the text
    parts = encoders.components()
    made = EmuMaskedPipeline(vae=tokenizer, transformer=transformer, **parts, resolution=32, num_text_tokens=8)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module", autouse=True)
def single_precision() -> Iterator[None]:
    """With bf16 on AMX equal runs differ in the last bits (docs/log.md), and here files are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, Path]:
    return write_toy_shards(tmp_path_factory.mktemp("corpus"), num_images=24)


@pytest.fixture(scope="module")
def tokenizer(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(tokenizer_job(corpus, folder))
    return result_of(folder)


@pytest.fixture(scope="module")
def trained(corpus, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    train_masked(masked_job(corpus, folder, tokenizer))
    return result_of(folder)


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, int)


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_after(steps: int) -> Running:
    return Running(stop_requested=iter([*[False] * (steps - 1), True]).__next__)


@pytest.mark.parametrize("order", ORDERS)
def test_tokens_depend_on_their_own_prompt_and_seed(pipeline, order):
    asked = {"num_inference_steps": 5, "order": order, "output_type": "latent"}
    both = pipeline(["red", "blue"], [5, 6], **asked).images
    assert both.shape == (2, 4, 4) and both.min() >= 0 and both.max() < 20  # no mask is left
    assert torch.equal(pipeline("blue", 6, **asked).images[0], both[1])
    assert torch.equal(pipeline("blue", generator=torch.Generator().manual_seed(6), **asked).images[0], both[1])
    assert not torch.equal(pipeline("blue", 7, **asked).images[0], both[1])
    assert not torch.equal(pipeline("green", 6, **asked).images[0], both[1])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num_steps", [1, 5, 40])
def test_a_step_keeps_what_was_decided_and_decides_as_many_as_the_schedule_says(pipeline, order, num_steps):
    seen = []
    pipeline.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    drawn = pipeline("red", 1, num_steps, 1.0, order=order, output_type="latent").images
    assert len(seen) == num_steps
    for step, (before, after) in enumerate(zip(seen, [*seen[1:], drawn], strict=True)):
        kept = before != 20
        assert torch.equal(after[kept], before[kept])
        assert (before == 20).sum() == int(16 * np.cos(np.pi / 2 * step / num_steps) + 1e-9)
    assert (drawn != 20).all()


def test_haltons_order_decides_the_same_positions_for_every_picture(pipeline):
    seen = []
    pipeline.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0] == 20))
    pipeline(["red", "blue"], [1, 2], 4, 1.0, output_type="latent")
    assert all(torch.equal(hidden[0], hidden[1]) for hidden in seen)


def test_a_low_temperature_draws_the_likeliest_tokens(pipeline):
    asked = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    one, two = (pipeline("red", seed, temperature=1e-4, **asked).images for seed in (1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(pipeline("red", 1, **asked).images, pipeline("red", 2, **asked).images)


def test_guidance_moves_pictures_away_from_the_negative_prompt(pipeline):
    sizes = []
    pipeline.transformer.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    plain = pipeline("red", 1, 2, 1.0, negative_prompt="blue", output_type="latent").images
    assert sizes == [1, 1] and torch.equal(pipeline("red", 1, 2, 1.0, output_type="latent").images, plain)
    sizes.clear()
    guided = pipeline("red", 1, 2, 6.0, output_type="latent").images
    assert sizes == [2, 2]
    assert not torch.equal(pipeline("red", 1, 2, 6.0, negative_prompt="blue", output_type="latent").images, guided)


def test_features_can_be_given_and_outputs_have_the_asked_type_and_size(pipeline):
    text, null = (encode_prompts(p, pipeline.text_encoders, 8) for p in (["red", "blue"], [""]))
    given = pipeline(text=text, negative_text=null, seeds=[1, 2], num_inference_steps=2, output_type="np").images
    assert np.array_equal(given, pipeline(["red", "blue"], [1, 2], 2, output_type="np").images)
    (tensor,) = pipeline("red", 1, 2, output_type="pt", height=48, width=32, return_dict=False)
    assert tensor.shape == (1, 3, 48, 32) and tensor.min() >= 0 and tensor.max() <= 1
    with pytest.raises(ValueError, match="multiples of 8"):
        pipeline("red", 1, height=36)
    with pytest.raises(ValueError, match="'halton' or 'confidence'"):
        pipeline("red", 1, order="random")


def test_a_saved_folder_loads_where_emu_is_not_installed(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-I", "-c", ALONE, str(tmp_path / "saved"), str(tmp_path / "again")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["modules"] == [] and found["class"].startswith("diffusers_modules")
    expected = array(pipeline(["red"], [1], 3).images[0])
    assert np.abs(np.array(found["image"]) - expected).max() <= 1
    for folder in ("saved", "again"):
        loaded = load_pipeline(tmp_path / folder)
        assert type(loaded) is EmuMaskedPipeline and type(loaded.vae) is PictureTokenizer
        assert denoiser_of(loaded) is loaded.transformer and latents_of(loaded) is loaded.vae
        assert np.abs(array(draw(loaded, ["red"], [1], 3)[0]) - expected).max() <= 1


def test_it_is_known_as_a_checkpoint_that_draws_but_that_quality_tuning_refuses(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    assert inspect_checkpoint(tmp_path) == Found("EmuMaskedPipeline", None)
    with pytest.raises(ValueError, match="EmuMaskedPipeline, which quality_tuned cannot tune"):
        inspect_tunable(tmp_path)
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps({**config, "levels": [5, 5]}))
    with pytest.raises(ValueError, match="knows 20 codes where the levels of its tokenizer give 25"):
        inspect_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["tokenizer", "masked"])
def test_an_interrupted_training_leaves_the_bytes_of_an_uninterrupted_one(corpus, tokenizer, trained, tmp_path, kind):
    is_tokenizer = kind == "tokenizer"
    job = tokenizer_job(corpus, tmp_path) if is_tokenizer else masked_job(corpus, tmp_path, tokenizer)
    with pytest.raises(Interrupted):
        job.run(stop_after(4))
    assert not result_of(tmp_path).exists()
    assert job.run(UNHEARD)["timings"]["resumed_from"] == 4
    mine, theirs = read_files(result_of(tmp_path)), read_files(tokenizer if is_tokenizer else trained)
    assert mine.keys() == theirs.keys() and not [name for name in mine if mine[name] != theirs[name]]
    again = job.run(UNHEARD)  # finds the result, and trains nothing
    assert "timings" not in again and again["metrics"] == json.loads(mine["meta.json"])["result"]["metrics"]


def test_results_say_how_the_codes_are_used(tokenizer, trained):
    of_tokenizer, of_masked = (
        json.loads((folder / "meta.json").read_text())["result"]["metrics"] for folder in (tokenizer, trained)
    )
    assert {"val_loss", "val_psnr", "codes_used", "code_entropy"} <= of_tokenizer.keys() and "kl" not in of_tokenizer
    assert 0 < of_tokenizer["codes_used"] <= 1
    assert {"val_loss", "code_entropy"} <= of_masked.keys()
    assert of_masked["code_entropy"] == pytest.approx(of_tokenizer["code_entropy"], rel=0.2)  # without held-out rows
    assert (trained / "preview.png").is_file() and (tokenizer / "preview.png").is_file()


def test_tuning_continues_from_a_pipeline_and_leaves_its_tokenizer(corpus, trained, tmp_path):
    few = replace(LOOP, num_steps=2)
    job = masked_job(corpus, tmp_path, None, few, transformer=None, start_from=trained)
    train_masked(job)
    (before, after), (code, same) = (
        [load_file(next((folder / part).glob("*.safetensors"))) for folder in (trained, result_of(tmp_path))]
        for part in ("transformer", "vae")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(code[name], same[name]) for name in code)


def test_a_job_without_a_start_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give start_from, or tokenizer and transformer"):
        masked_job((tmp_path, tmp_path), tmp_path, tmp_path, transformer=None)
