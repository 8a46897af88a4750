"""Transformers of rectified flow that are trained here, on latents and on pixels, are used like any other model."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, PRXTransformer2DModel, SD3Transformer2DModel

from emu_models.checkpoints import add_adapters, load_pipeline
from emu_models.drawing import draw
from emu_models.flow.building import build_transformer
from emu_models.flow.jobs import TransformerConfig
from emu_models.flow.network import MIN_LEVEL, PREDICTIONS, predict_velocity
from emu_models.flow.pipeline import EmuFlowPipeline
from emu_models.latent import trainings
from emu_models.latent.jobs import Adapters, DenoiserJob, DenoiserTrainingConfig
from emu_models.text import TextFeatures
from emu_models.training.loop import Interrupted
from emu_models.training.running import Running
from tests.shards import write_toy_shards
from tests.toy_training import LOOP, autoencoder_job, places, result_of

PROMPTS, SEEDS = ["a red square", "a blue square"], [3, 4]
NETWORKS = {
    "latents": TransformerConfig(patch=2, width=64, heads=2, layers=2),
    "pixels": TransformerConfig(patch=8, width=64, heads=2, layers=2, bottleneck=16),
}
SPACES = pytest.mark.parametrize("space", NETWORKS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, Path]:
    return write_toy_shards(tmp_path_factory.mktemp("corpus"), num_images=16)


@pytest.fixture(scope="module")
def autoencoder(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    trainings.train_autoencoder(*autoencoder_job(corpus, folder))
    return result_of(folder)


def make_job(space: str, corpus, autoencoder: Path, folder: Path, **changed: Any) -> DenoiserJob:
    loop = changed.pop("loop", LOOP)
    given: dict[str, Any] = {
        **places("flow", corpus, folder),
        "loop": loop,
        "autoencoder": autoencoder if space == "latents" else None,
        "transformer": NETWORKS[space],
        "num_text_tokens": 8,
        "training": DenoiserTrainingConfig(loop.num_steps, 4, loop.learning_rate, 0.0, 0.2, 0),
        "prompts": tuple(PROMPTS),
        "guidance_scale": 2.0,
        "noise_shift": 1.5,
    }
    return DenoiserJob(**{**given, **changed})


@pytest.fixture(scope="module")
def trained(corpus, autoencoder, tmp_path_factory) -> dict[str, Path]:
    folders = {space: tmp_path_factory.mktemp(space) for space in NETWORKS}
    for space, folder in folders.items():
        trainings.train_denoiser(make_job(space, corpus, autoencoder, folder))
    return {space: result_of(folder) for space, folder in folders.items()}


def pictures(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return np.stack([np.asarray(image) for image in draw(pipeline, PROMPTS, SEEDS, 3, 2.0)])


@SPACES
def test_plain_diffusers_draws_the_same_pictures_with_the_saved_code(trained, space):
    ours = load_pipeline(trained[space])
    assert isinstance(ours, EmuFlowPipeline) and (ours.vae is None) == (space == "pixels")
    plain = DiffusionPipeline.from_pretrained(trained[space], trust_remote_code=True, local_files_only=True)
    assert type(plain) is not EmuFlowPipeline
    plain.set_progress_bar_config(disable=True)
    found = plain(PROMPTS, SEEDS, 3, 2.0, output_type="np").images
    assert np.abs(255 * found - pictures(ours)).max() <= 1


@SPACES
def test_a_picture_depends_only_on_its_prompt_and_seed(trained, space):
    pipeline = load_pipeline(trained[space])
    together = pictures(pipeline).astype(int)
    alone = np.asarray(draw(pipeline, PROMPTS[1:], SEEDS[1:], 3, 2.0)[0]).astype(int)
    assert np.abs(together[1] - alone).max() <= 1


@SPACES
def test_a_training_that_was_stopped_ends_with_the_same_bytes(trained, space, corpus, autoencoder, tmp_path):
    calls = SimpleNamespace(number=0)

    def stop() -> bool:
        calls.number += 1
        return calls.number == 3

    job = make_job(space, corpus, autoencoder, tmp_path)
    with pytest.raises(Interrupted):
        trainings.train_denoiser(job, Running(stop_requested=stop))
    trainings.train_denoiser(job)
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (result_of(tmp_path) / name).read_bytes() == (trained[space] / name).read_bytes()


@SPACES
def test_tuning_at_a_vanishing_rate_leaves_the_pictures(trained, space, corpus, tmp_path):
    before = pictures(load_pipeline(trained[space])).astype(int)
    for adapters in (None, *([Adapters(2, 2.0, ("to_q", "to_v"))] if space == "latents" else [])):
        job = make_job(space, corpus, tmp_path, tmp_path / str(adapters is None))
        job = replace(
            job,
            start_from=trained[space],
            autoencoder=None,
            transformer=None,
            noise_shift=None,
            adapters=adapters,
            loop=replace(LOOP, learning_rate=1e-12),
        )
        result = trainings.train_denoiser(job).folder / "result"
        assert np.abs(pictures(load_pipeline(result)) - before).max() <= 1


@SPACES
def test_a_new_network_predicts_zero_and_learns_from_its_first_step_on(space):
    network = build_transformer(NETWORKS[space], 4 if space == "latents" else None, 24, 24)
    predict = PREDICTIONS[type(network)]
    assert isinstance(network, SD3Transformer2DModel if space == "latents" else PRXTransformer2DModel)
    z, level = torch.randn(2, 4 if space == "latents" else 3, 16, 16), torch.tensor([0.5, 1.0])
    text = TextFeatures(torch.randn(2, 8, 24), torch.ones(2, 8, dtype=torch.bool), torch.randn(2, 24))
    velocity = predict(network, z, level, text)
    expected = torch.zeros_like(z) if space == "latents" else z / level[:, None, None, None]
    assert torch.equal(velocity, expected)
    (velocity - torch.ones_like(z)).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_a_network_on_pixels_that_knows_the_picture_predicts_its_velocity(monkeypatch):
    network = build_transformer(NETWORKS["pixels"], None, 24, 24)
    z0, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    monkeypatch.setattr(network, "forward", lambda **given: (z0,))
    level_B = torch.tensor([MIN_LEVEL, 0.9])
    level = level_B[:, None, None, None]
    text = TextFeatures(torch.randn(2, 8, 24), torch.ones(2, 8, dtype=torch.bool), torch.randn(2, 24))
    velocity = predict_velocity(network, (1 - level) * z0 + level * noise, level_B, text)
    torch.testing.assert_close(velocity, noise - z0, atol=1e-5, rtol=1e-5)


def test_the_published_network_has_its_published_size():
    """Stable Diffusion 3, depth 38: 8 billion (Esser et al., arXiv 2403.03206, sec. 5.4)."""
    config = TransformerConfig(patch=2, width=64 * 38, heads=38, layers=38)
    with torch.device("meta"):
        network = build_transformer(config, 16, 4096, 2048)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(8e9, rel=0.02)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="PRXTransformer2DModel takes no adapters"):
        add_adapters(build_transformer(NETWORKS["pixels"], None, 24, 24), Adapters(2, 2.0, ("to_q",)))
    with pytest.raises(ValueError, match="multiple of 4 x heads"):
        TransformerConfig(patch=2, width=60, heads=4, layers=1)
    with pytest.raises(ValueError, match="needs bottleneck"):
        build_transformer(NETWORKS["latents"], None, 24, 24)
    with pytest.raises(ValueError, match="works on latents"):
        build_transformer(NETWORKS["pixels"], 4, 24, 24)
