"""Checkpoints as people have them: with a variant, in shards, pickled, in a single file, partly fetched."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from emu_models.checkpoints import load_pipeline
from emu_models.folders import Found, inspect_checkpoint
from emu_models.latent.autoencoder.network import Autoencoder
from tests.checkpoints import make_checkpoint

NAMES = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
WHOLE = {  # name -> how a pipeline is saved, and the variant that is read
    "plain": ({}, None),
    "sharded": ({"max_shard_size": "100KB"}, None),
    "fp16": ({"variant": "fp16"}, "fp16"),
    "fp16-sharded": ({"variant": "fp16", "max_shard_size": "100KB"}, "fp16"),
    "ema": ({"variant": "non_ema"}, "non_ema"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: make_checkpoint(kind, folder / kind) for kind in NAMES}


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{part}.{name}": w for part, module in parts.items() for name, w in module.state_dict().items()}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("way", WHOLE)
def test_a_whole_folder_is_read_however_it_was_saved(plain, tmp_path, kind, way):
    options, variant = WHOLE[way]
    saved: Any = DiffusionPipeline.from_pretrained(plain[kind], local_files_only=True)
    saved.to(torch.float16 if variant == "fp16" else torch.float32).save_pretrained(tmp_path / way, **options)
    assert inspect_checkpoint(tmp_path / way) == Found(NAMES[kind], variant)
    loaded, wanted = weights(load_pipeline(tmp_path / way)), weights(saved)
    assert loaded.keys() == wanted.keys() and {w.dtype for w in loaded.values() if w.is_floating_point()} == {
        torch.float32
    }
    assert all(torch.equal(loaded[name].float(), wanted[name].float()) for name in wanted)


def test_one_part_of_another_variant_is_read_and_the_others_stay_complete(plain, tmp_path):
    half: Any = DiffusionPipeline.from_pretrained(plain["sd1"], local_files_only=True).to(torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    shutil.copytree(plain["sd1"], tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "vae")
    shutil.copytree(tmp_path / "half" / "vae", tmp_path / "mixed" / "vae")
    loaded = weights(load_pipeline(tmp_path / "mixed"))
    whole = weights(load_pipeline(plain["sd1"]))
    halved = {name for name in whole if not torch.equal(whole[name], loaded[name])}
    assert halved and all(name.startswith("vae.") for name in halved)
    (file,) = (tmp_path / "mixed" / "unet").glob("*.safetensors")
    file.rename(file.with_name("diffusion_pytorch_model.bf16.safetensors"))
    with pytest.raises(ValueError, match=r"different variants \(unet/ bf16, vae/ fp16\)"):
        load_pipeline(tmp_path / "mixed")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def weights_file(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def pickle(folder: Path) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    shutil.rmtree(folder / "unet")
    pipeline.unet.save_pretrained(folder / "unet", safe_serialization=False)


def shard(folder: Path) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    shutil.rmtree(folder / "unet")
    pipeline.unet.save_pretrained(folder / "unet", max_shard_size="100KB")


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    sorted((folder / "unet").glob("*.safetensors"))[1].unlink()


def lose_the_index(folder: Path) -> None:
    shard(folder)
    next((folder / "unet").glob("*.index.json")).unlink()


def as_single(folder: Path) -> None:
    file = weights_file(folder, "unet").rename(folder.with_name("v1-5.safetensors"))
    shutil.rmtree(folder)
    folder.mkdir()
    file.rename(folder / file.name)


def only_adapters(folder: Path) -> None:
    as_single(folder)
    (folder / "v1-5.safetensors").rename(folder / "pytorch_lora_weights.safetensors")


SCHEDULER = "scheduler/scheduler_config.json"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled": (pickle, r"unet/ has weights only as diffusion_pytorch_model.bin, a pickle.*python"),
    "a part is gone": (lambda f: shutil.rmtree(f / "vae"), r"lacks vae/, named in its model_index.json"),
    "weights are gone": (lambda f: weights_file(f, "vae").unlink(), r"vae/ has no weights .*only config.json"),
    "a shard is gone": (lose_a_shard, r"00002-of-.* is missing, although its index lists it"),
    "the index is gone": (lose_the_index, r"unet/ has shards such as .* but no index"),
    "cut": (
        lambda f: (w := weights_file(f, "unet")).write_bytes(w.read_bytes()[:-1]),
        r"not a complete safetensors file",
    ),
    "cut in the header": (lambda f: weights_file(f, "unet").write_bytes(b"1234"), r"not a complete safetensors file"),
    "a pointer": (
        lambda f: weights_file(f, "text_encoder").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:a"
        ),
        r"git lfs pull",
    ),
    "no JSON": (lambda f: (f / "model_index.json").write_text("{"), r"cannot be read as JSON"),
    "a list": (lambda f: (f / "model_index.json").write_text("[]"), r"is not a JSON object"),
    "no class": (lambda f: (f / "model_index.json").write_text("{}"), r"holds a None; only .* can be tuned"),
    "no config": (lambda f: (f / "unet" / "config.json").unlink(), r"unet/config.json is missing"),
    "single": (as_single, r"v1-5.safetensors is a checkpoint in a single file.*from_single_file"),
    "adapters": (only_adapters, r"holds no pipeline \(no model_index.json\)"),
    "nothing": (lambda f: shutil.rmtree(f), r"there is no folder .*hf download"),
    "no signal": (lambda f: edit(f / SCHEDULER, rescale_betas_zero_snr=True), r"set rescale_betas_zero_snr to false"),
    "flow": (lambda f: edit(f / SCHEDULER, prediction_type="flow_prediction"), r"prediction_type 'flow_prediction'"),
    "inpainting": (lambda f: edit(f / "unet/config.json", in_channels=9), r"more than noisy latents"),
    "distilled": (lambda f: edit(f / "unet/config.json", time_cond_proj_dim=8), r"more than noisy latents"),
    "shifted": (lambda f: edit(f / "vae/config.json", shift_factor=0.1), r"shift_factor"),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_read_is_one_sentence_from_the_inspection_alone(plain, tmp_path, kind, what):
    folder = tmp_path / "checkpoint"
    shutil.copytree(plain[kind], folder)
    spoil, message = BROKEN[what]
    spoil(folder)
    for read in (inspect_checkpoint, load_pipeline):
        with pytest.raises(ValueError, match=message) as reported:
            read(folder)
        assert "\n" not in str(reported.value)


def test_a_single_file_is_not_a_folder(plain):
    with pytest.raises(ValueError, match="in a single file"):
        inspect_checkpoint(weights_file(plain["sd1"], "unet"))


def test_other_settings_whose_schedule_ends_in_pure_noise_are_refused_too(plain, tmp_path):
    shutil.copytree(plain["sd1"], tmp_path / "sd")
    edit(tmp_path / "sd" / SCHEDULER, trained_betas=[*[0.001] * 999, 1.0])
    with pytest.raises(ValueError, match="ends in pure noise"):
        load_pipeline(tmp_path / "sd")
    edit(tmp_path / "sd" / SCHEDULER, prediction_type="v_prediction")
    load_pipeline(tmp_path / "sd")


def test_the_inspection_does_not_import_torch():
    code = "import sys; import emu_models.folders, emu_steps.brought; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    Autoencoder(latent_channels=4, widths=(16, 32)).save_pretrained(folder)
    return folder


def loaders() -> list[str]:
    """The autoencoders of diffusers, and other networks that a config without a name fits."""
    named = [name for name in dir(diffusers) if "Autoencoder" in name or name.endswith("VAE") or name == "VQModel"]
    classes = [name for name in named if isinstance(getattr(diffusers, name), type)]
    assert len(classes) > 30 and "AutoencoderKL" in classes
    return [*classes, "UNet2DModel", "UNet2DConditionModel", "AutoModel"]


@pytest.mark.parametrize("name", loaders())
def test_no_class_of_diffusers_loads_our_autoencoder(ours, name):
    with pytest.raises((ValueError, TypeError, AttributeError)):
        getattr(diffusers, name).from_pretrained(ours, local_files_only=True)


def test_our_autoencoder_is_read_by_its_own_class_even_if_an_older_version_wrote_it(ours, tmp_path):
    config = json.loads((ours / "config.json").read_text())
    assert config["_class_name"] == {"emu_models": "Autoencoder"}
    with pytest.raises(ValueError, match="_class_name"):
        AutoencoderKL.from_pretrained(ours)
    loaded = Autoencoder.from_pretrained(ours)
    assert type(loaded) is Autoencoder and loaded.config["_class_name"] == "Autoencoder"
    loaded.save_pretrained(tmp_path / "again")
    older = shutil.copytree(ours, tmp_path / "older")
    edit(older / "config.json", _class_name="Autoencoder")
    for folder in (tmp_path / "again", older):
        again = Autoencoder.from_pretrained(folder).state_dict()
        assert all(torch.equal(again[name], w) for name, w in loaded.state_dict().items())
