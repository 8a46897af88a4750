"""Transformers of rectified flow made by others are tuned with the same code, and plain diffusers still loads them."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from emu_models.checkpoints import captions_of, denoiser_of, latents_of, load_pipeline
from emu_models.drawing import draw
from emu_models.flow.layouts import LAYOUTS
from emu_models.flow.learner import noise_shift
from emu_models.flow.network import pack, unpack
from emu_models.folders import WITH_TRANSFORMER, inspect_checkpoint
from emu_models.latent.jobs import Adapters
from emu_models.training.loop import Interrupted
from emu_models.training.running import Running
from tests.emu_models import test_checkpoints
from tests.emu_models.test_checkpoints import LOOP, PROMPTS, SEEDS, refuse_places, weights
from tests.emu_models.test_training import stop_after
from tests.flow_checkpoints import KINDS, make_flow_checkpoint
from tests.shards import write_toy_shards
from tests.toy_training import newest_state, read_state

SIDE = 32  # px; SANA's pipeline takes multiples of 32 alone


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, Path]:
    return write_toy_shards(tmp_path_factory.mktemp("corpus"), num_images=12)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: make_flow_checkpoint(kind, folder / kind) for kind in KINDS}


tune = partial(test_checkpoints.tune, resolution=SIDE)


def pictures(pipeline: Any, prompts: list[str] = PROMPTS) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return np.stack([np.asarray(p, int) for p in draw(pipeline, prompts, SEEDS, 4, 3.0, SIDE)])


def plain_pictures(pipeline: Any, prompts: list[str] = PROMPTS) -> np.ndarray:
    """What the pipeline's own `__call__` makes of prompts, one by one as its users ask it."""
    pipeline.set_progress_bar_config(disable=True)
    name = type(pipeline).__name__
    asked: dict[str, Any] = {"true_cfg_scale": 3.0, "negative_prompt": ""} if name.startswith("Qwen") else {}
    asked = asked or {"guidance_scale": 3.0}
    if name.startswith("Sana"):
        asked["use_resolution_binning"] = False
    sides = {"height": SIDE, "width": SIDE, "num_inference_steps": 4}
    found = [
        pipeline(prompt, generator=torch.Generator().manual_seed(seed), **sides, **asked).images[0]
        for prompt, seed in zip(prompts, SEEDS, strict=True)
    ]
    return np.stack([np.asarray(image, int) for image in found])


def test_the_layouts_have_one_list():
    assert {layout.__name__ for layout in LAYOUTS} == set(WITH_TRANSFORMER)
    assert set(LAYOUTS) == set(KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_those_that_plain_diffusers_draws(checkpoints, kind):
    ours, plain = load_pipeline(checkpoints[kind]), KINDS[kind].from_pretrained(checkpoints[kind])
    # SANA's pipeline puts its instruction before an empty prompt that is not the negative one; here both are the same
    for prompts in (PROMPTS, ["green" if kind == "sana" else "", "blue"]):
        assert np.abs(pictures(ours, prompts) - plain_pictures(plain, prompts)).max() <= 1
    assert np.abs(pictures(ours) - pictures(ours, ["green", "a dog"])).max() > 0  # the text matters


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_scaled_as_the_pipeline_undoes_it(checkpoints, kind, monkeypatch):
    pipeline = load_pipeline(checkpoints[kind])
    autoencoder, network = latents_of(pipeline), denoiser_of(pipeline)
    z = autoencoder.normalise(autoencoder.encode(torch.rand(2, 3, SIDE, SIDE) * 2 - 1).mean)
    decoded, given = [], pipeline.vae.decode

    def decode(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        decoded.append(z)
        return given(z, *args, **kwargs)

    # a velocity of zero leaves the latents as they begin
    monkeypatch.setattr(network, "forward", lambda hidden_states, *a, **k: (torch.zeros_like(hidden_states),))
    monkeypatch.setattr(pipeline.vae, "decode", decode)
    start = z if kind in ("sd3", "sana") else pack(z)
    text = captions_of(pipeline).encode(PROMPTS, 0)
    layout = LAYOUTS[type(pipeline)]
    pipeline.set_progress_bar_config(disable=True)
    if kind == "sana":  # its solver makes more of latents than their sum with a velocity
        pipeline.scheduler.step = lambda predicted, t, z, **k: (z,)
    pipeline(
        **layout.arguments(text, text),
        **layout.asked(1.0),
        latents=start,
        height=SIDE,
        width=SIDE,
        num_inference_steps=2,
    )
    raw = decoded[0][:, :, 0] if kind == "qwen" else decoded[0]
    torch.testing.assert_close(autoencoder.normalise(raw), z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuned_checkpoint_is_still_of_its_kind(corpus, checkpoints, tmp_path, kind):
    out = tune(corpus, checkpoints[kind], tmp_path)
    tuned: Any = DiffusionPipeline.from_pretrained(out, local_files_only=True)
    assert type(tuned) is KINDS[kind]
    images = pictures(tuned)
    assert images.shape == (2, SIDE, SIDE, 3)
    assert np.abs(images - pictures(load_pipeline(out))).max() <= 1
    assert np.abs(images - pictures(load_pipeline(checkpoints[kind]))).max() > 1
    before, after = weights(checkpoints[kind] / "transformer"), weights(out / "transformer")
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[name], after[name]) for name in before) > 0.7 * len(before)
    for part in ("vae", "text_encoder"):
        assert all(torch.equal(weights(out / part)[n], w) for n, w in weights(checkpoints[kind] / part).items())
    assert (out / "preview.png").is_file() and (out / "meta.json").is_file()
    refuse_places(out, tmp_path, checkpoints[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_step_nothing_changes(corpus, checkpoints, tmp_path, kind):
    out = tune(corpus, checkpoints[kind], tmp_path, loop=replace(LOOP, learning_rate=0.0))
    before, after = weights(checkpoints[kind] / "transformer"), weights(out / "transformer")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert np.array_equal(pictures(load_pipeline(out)), pictures(load_pipeline(checkpoints[kind])))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_a_file_that_plain_diffusers_adds_to_the_checkpoint(corpus, checkpoints, tmp_path, kind):
    loop = replace(LOOP, learning_rate=0.05)
    out = tune(corpus, checkpoints[kind], tmp_path, Adapters(4, 8.0, ("to_q", "to_v")), loop)
    trained = read_state(newest_state(out.parent / "states"))
    trained = {name.removeprefix("network/"): w for name, w in trained.items() if name.startswith("network/")}
    frozen = {name.replace(".base_layer", ""): w for name, w in trained.items() if "lora_" not in name}
    assert all(torch.equal(frozen[name], w) for name, w in weights(checkpoints[kind] / "transformer").items())
    with_file: Any = KINDS[kind].from_pretrained(checkpoints[kind])
    with_file.load_lora_weights(out, weight_name="pytorch_lora_weights.safetensors")
    images = pictures(with_file)
    assert np.abs(images - pictures(load_pipeline(out))).max() <= 1
    assert np.abs(images - pictures(load_pipeline(checkpoints[kind]))).max() > 1


@pytest.mark.parametrize("kind", ["sd3", "qwen"])
def test_an_interrupted_tuning_resumes_bitwise(corpus, checkpoints, tmp_path, kind):
    whole = tune(corpus, checkpoints[kind], tmp_path / "whole")
    with pytest.raises(Interrupted):
        tune(corpus, checkpoints[kind], tmp_path / "parts", running=Running(stop_requested=stop_after(2)))
    parts = tune(corpus, checkpoints[kind], tmp_path / "parts")
    first, second = weights(whole / "transformer"), weights(parts / "transformer")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_patches_are_the_pipelines():
    z = torch.randn(2, 4, 6, 8)
    flux: Any = KINDS["flux"]
    assert torch.equal(pack(z), flux._pack_latents(z, 2, 4, 6, 8))
    assert torch.equal(unpack(pack(z), 3, 4), z)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_shifted_as_the_scheduler_does(checkpoints, kind):
    """The levels at which a pipeline draws, shifted back, are evenly spread."""
    pipeline = load_pipeline(checkpoints[kind])
    scheduler, positions = pipeline.scheduler, 36
    shift, even = noise_shift(scheduler, positions), torch.linspace(0.9, 0.1, 9).double()
    if kind == "sana":
        scheduler.set_timesteps(9)
        even = (1 - torch.linspace(1, 1 / 1000, 10).double()).flip(0)[:-1]
        found = shift * even / (1 + (shift - 1) * even)
        torch.testing.assert_close(found, scheduler.sigmas[:-1].double(), atol=1e-3, rtol=0)
        return
    if scheduler.config.use_dynamic_shifting:
        few, many = scheduler.config.base_image_seq_len, scheduler.config.max_image_seq_len
        slope = (scheduler.config.max_shift - scheduler.config.base_shift) / (many - few)
        mu = scheduler.config.base_shift + slope * (positions - few)
        expected = scheduler.time_shift(mu, 1.0, even)
    else:
        scheduler.set_timesteps(sigmas=even.tolist())
        expected = scheduler.sigmas[:-1].double()
    found = shift * even / (1 + (shift - 1) * even)
    torch.testing.assert_close(found, expected.double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("transformer", {"in_channels": 96}, "inpainting"),
        ("scheduler", {"_class_name": "DDIMScheduler"}, "DDIMScheduler is not one of rectified flow"),
        ("transformer", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ("text_encoder_2", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_loaded(checkpoints, tmp_path, part, changes, reason):
    folder = tmp_path / "changed"
    shutil.copytree(checkpoints["flux"], folder)
    (path,) = folder.joinpath(part).glob("*config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=reason):
        inspect_checkpoint(folder)


def test_weights_in_half_precision_and_without_the_third_encoder_are_read(checkpoints, tmp_path):
    plain: Any = KINDS["sd3"].from_pretrained(checkpoints["sd3"])
    plain.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(tmp_path / "half" / part)
    index = tmp_path / "half" / "model_index.json"
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3"), [None, None])
    index.write_text(json.dumps(json.loads(index.read_text()) | absent))
    assert inspect_checkpoint(tmp_path / "half").variant == "fp16"
    pipeline = load_pipeline(tmp_path / "half")
    assert pipeline.transformer.dtype == torch.float32 and len(captions_of(pipeline).models) == 2
    assert pictures(pipeline).shape == (2, SIDE, SIDE, 3)
