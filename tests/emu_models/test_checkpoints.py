"""Checkpoints made by others are tuned with the same code as ours, and diffusers still loads them as what they were."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from emu_models.checkpoints import captions_of, latents_of, load_pipeline
from emu_models.drawing import draw
from emu_models.latent import trainings
from emu_models.latent.denoiser import denoise
from emu_models.latent.jobs import Adapters, DenoiserJob, DenoiserTrainingConfig
from emu_models.training.jobs import LoopConfig
from emu_models.training.running import UNHEARD, Running
from tests.checkpoints import make_checkpoint
from tests.shards import write_toy_shards
from tests.toy_training import newest_state, places, read_state

KINDS = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon"}
LOOP = LoopConfig(
    num_steps=4,
    learning_rate=1e-3,
    warmup_steps=1,
    ema_decay=0.5,
    validate_every=2,
    max_rise=0.0,
    checkpoint_minutes=1e9,
    seed=0,
)
PROMPTS, SEEDS = ["a red square", "blue"], [3, 4]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, Path]:
    return write_toy_shards(tmp_path_factory.mktemp("corpus"), num_images=12)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: make_checkpoint(kind, folder / kind) for kind in KINDS}


def tune(
    corpus,
    start_from: Path,
    folder: Path,
    adapters: Adapters | None = None,
    loop: LoopConfig = LOOP,
    running: Running = UNHEARD,
    resolution: int = 24,
) -> Path:
    """Tune, by default not at the 32 px at which the checkpoints draw; return the folder of the result."""
    where = places("tuned", corpus, folder)
    where["resolution"] = resolution
    job = DenoiserJob(
        **where,
        loop=loop,
        start_from=start_from,
        num_text_tokens=12,
        training=DenoiserTrainingConfig(loop.num_steps, 4, loop.learning_rate, 0.1, 0.2, 0),
        prompts=tuple(PROMPTS),
        guidance_scale=2.0,
        adapters=adapters,
    )
    return trainings.train_denoiser(job, running).folder / "result"


def pictures(pipeline: Any, resolution: int | None = None) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return np.stack([np.asarray(p, int) for p in draw(pipeline, PROMPTS, SEEDS, 4, 3.0, resolution)])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def refuse_places(folder: Path, *places: Path) -> None:
    """Nothing in a model's folder says where it, or what it was made from, is on this machine."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    reported = [
        (file.relative_to(folder), b)
        for file in files
        for b in (str(p).encode() for p in places)
        if b in file.read_bytes()
    ]
    assert len(files) > 10 and not reported
    configs = [file for file in files if file.suffix == ".json"]
    assert not [file for file in configs if b'name_or_path"' in file.read_bytes()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuned_checkpoint_is_still_of_its_kind(corpus, checkpoints, tmp_path, kind):
    out = tune(corpus, checkpoints[kind], tmp_path)
    layout = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    tuned: Any = layout.from_pretrained(out, local_files_only=True)
    assert type(DiffusionPipeline.from_pretrained(out, local_files_only=True)) is layout
    assert tuned.scheduler.config.prediction_type == KINDS[kind]
    images = pictures(tuned)
    assert images.shape == (2, 24, 24, 3)
    assert np.abs(images - pictures(load_pipeline(out))).max() <= 1
    assert np.abs(images - pictures(load_pipeline(checkpoints[kind]), 24)).max() > 1
    before, after = weights(checkpoints[kind] / "unet"), weights(out / "unet")
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[name], after[name]) for name in before) > 0.9 * len(before)
    for part in ("vae", "text_encoder"):
        assert all(torch.equal(weights(out / part)[n], w) for n, w in weights(checkpoints[kind] / part).items())
    assert (out / "preview.png").is_file() and (out / "meta.json").is_file()
    refuse_places(out, tmp_path, checkpoints[kind])


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_only_adapters_learn(corpus, checkpoints, tmp_path, kind):
    out = tune(
        corpus, checkpoints[kind], tmp_path, Adapters(4, 8.0, ("to_q", "to_v")), replace(LOOP, learning_rate=0.05)
    )
    base = weights(checkpoints[kind] / "unet")
    trained = read_state(newest_state(out.parent / "states"))
    trained = {name.removeprefix("network/"): w for name, w in trained.items() if name.startswith("network/")}
    frozen = {name.replace(".base_layer", ""): w for name, w in trained.items() if "lora_" not in name}
    assert frozen.keys() == base.keys()
    assert all(torch.equal(frozen[name], base[name]) for name in base)

    refuse_places(out, tmp_path, checkpoints[kind])
    merged = weights(out / "unet")
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {n for n in base if n.endswith(("to_q.weight", "to_v.weight"))}
    adapted: Any = DiffusionPipeline.from_pretrained(checkpoints[kind], local_files_only=True)
    plain = pictures(adapted, 24)
    adapted.load_lora_weights(out, weight_name="pytorch_lora_weights.safetensors", local_files_only=True)
    assert np.abs(pictures(adapted, 24) - pictures(load_pipeline(out))).max() <= 1
    assert np.abs(pictures(adapted, 24) - plain).max() > 2


@pytest.mark.parametrize("kind", KINDS)
def test_latents_and_captions_are_those_of_the_pipeline(checkpoints, kind):
    """One step of guidance by our functions, from pure noise, equals one step of the pipeline itself."""
    pipeline = load_pipeline(checkpoints[kind])
    pipeline.set_progress_bar_config(disable=True)
    captions = captions_of(pipeline)
    text, null = captions.encode(PROMPTS, 12), captions.encode(["", " "], 12)
    latents = latents_of(pipeline)
    z = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = {}

    def keep(module, args, kwargs, output):
        seen.setdefault("input", args[0] if args else kwargs["sample"])
        seen.setdefault("t", args[1])
        seen.setdefault("output", output[0] if isinstance(output, tuple) else output.sample)

    handle = pipeline.unet.register_forward_hook(keep, with_kwargs=True)
    pipeline(PROMPTS, height=32, width=32, num_inference_steps=2, guidance_scale=2.0, latents=z)
    handle.remove()
    without, with_text = seen["input"].chunk(2)
    t_B = torch.as_tensor(seen["t"]).expand(2)
    with torch.no_grad():
        halves = ((without, null), (with_text, text))
        ours = torch.cat([denoise(pipeline.unet, z, t_B, features, latents.factor) for z, features in halves])
    assert torch.allclose(ours, seen["output"], atol=1e-5)
    if kind == "sdxl":  # as its pipeline says it
        seen.clear()
        handle = pipeline.unet.register_forward_hook(keep, with_kwargs=True)
        given = {"original_size": (80, 64), "crops_coords_top_left": (4, 0), "target_size": (32, 32)}
        pipeline(PROMPTS, height=32, width=32, num_inference_steps=2, guidance_scale=1.0, latents=z, **given)
        handle.remove()
        sizes = torch.tensor([80.0, 64, 4, 0, 32, 32]).expand(2, -1)
        with torch.no_grad():
            told = denoise(pipeline.unet, seen["input"], t_B, text, latents.factor, sizes)
        assert torch.allclose(told, seen["output"], atol=1e-5) and not torch.allclose(told, ours[2:], atol=1e-5)

    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        z0 = latents.normalise(latents.encode(x).mean)
        expected = pipeline.vae.encode(x).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert torch.allclose(z0, expected, atol=1e-6)


def test_channel_statistics_of_an_xl_autoencoder_are_used(checkpoints):
    pipeline = load_pipeline(checkpoints["sdxl"])
    pipeline.vae.register_to_config(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[2.0] * 4)
    latents, z = latents_of(pipeline), torch.randn(1, 4, 2, 2)
    mean = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    # StableDiffusionXLPipeline decodes z * std / scaling_factor + mean
    assert torch.allclose(latents.normalise(z * 2.0 / pipeline.vae.config.scaling_factor + mean), z, atol=1e-5)


def test_what_cannot_be_tuned_is_refused(checkpoints, tmp_path):
    with pytest.raises(ValueError, match="model_index.json"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "KolorsPipeline"}')
    with pytest.raises(ValueError, match="KolorsPipeline.*StableDiffusionXLPipeline"):
        load_pipeline(tmp_path)
    inpainting: Any = DiffusionPipeline.from_pretrained(checkpoints["sd1"], local_files_only=True)
    inpainting.unet = UNet2DConditionModel.from_config({**inpainting.unet.config, "in_channels": 9})
    inpainting.save_pretrained(tmp_path / "inpainting")
    with pytest.raises(ValueError, match="more than noisy latents"):
        load_pipeline(tmp_path / "inpainting")


def test_unknown_layers_for_adapters_are_named(corpus, checkpoints, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        tune(corpus, checkpoints["sd1"], tmp_path, Adapters(4, 4.0, ("nowhere",)))
