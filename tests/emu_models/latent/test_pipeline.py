"""EmuPipeline is called, saved and loaded as people who use diffusers expect, even where emu is not installed."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch.nn import functional as F

from emu_models.checkpoints import add_adapters, load_pipeline, save_pipeline
from emu_models.diffusion.schedule import build_scheduler
from emu_models.drawing import draw
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.building import build_denoiser
from emu_models.latent.denoiser import denoise
from emu_models.latent.jobs import Adapters, DenoiserConfig
from emu_models.latent.pipeline import EmuPipeline
from emu_models.text import TextFeatures, encode_prompts, load_text_encoders
from tests.checkpoints import make_checkpoint


@pytest.fixture
def pipeline() -> EmuPipeline:
    torch.manual_seed(0)
    encoders = load_text_encoders()
    config = DenoiserConfig((32, 64), (False, False), 1, "joint")
    made = EmuPipeline(
        vae=Autoencoder(4, widths=(16, 32), fourier_bands=1).eval(),
        unet=build_denoiser(config, 4, encoders.token_width, encoders.pooled_width).eval(),
        scheduler=build_scheduler(),
        **encoders.components(),
        resolution=32,
        num_text_tokens=8,
    )
    made.set_progress_bar_config(disable=True)
    return made


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, int)


def test_a_picture_depends_on_its_own_prompt_and_seed(pipeline):
    both = draw(pipeline, ["red", "blue"], [5, 6], 3)
    (alone,) = draw(pipeline, ["blue"], [6], 3)
    assert np.abs(array(both[1]) - array(alone)).max() <= 1
    by_generator = pipeline("blue", generator=torch.Generator().manual_seed(6), num_inference_steps=3).images[0]
    assert array(by_generator).tobytes() == array(alone).tobytes()
    four = pipeline(["red", "blue"], [5, 8, 9, 6], 3, num_images_per_prompt=2).images
    assert np.abs(array(four[3]) - array(alone)).max() <= 1
    assert np.abs(array(four[0]) - array(both[0])).max() <= 1
    assert np.abs(array(pipeline("red", 5, 3, num_images_per_prompt=2).images[0]) - array(both[0])).max() <= 1


def test_guidance_is_switched_off_by_its_scale(pipeline):
    """At 1 the network is called once per step, with the prompts alone; a negative prompt then changes nothing."""
    sizes = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    plain = pipeline("red", 1, 2, 1.0).images[0]
    assert sizes == [1, 1]
    assert array(pipeline("red", 1, 2, 1.0, negative_prompt="blue").images[0]).tobytes() == array(plain).tobytes()
    sizes.clear()
    guided = pipeline("red", 1, 2, 4.0, output_type="latent").images
    assert sizes == [2, 2]
    assert not torch.equal(pipeline("red", 1, 2, 4.0, negative_prompt="blue", output_type="latent").images, guided)


def test_features_can_be_given_instead_of_prompts(pipeline):
    """As drawing does, which needs no text encoder while the denoiser runs."""
    text, null = (encode_prompts(p, pipeline.text_encoders, 8) for p in (["red", "blue"], ["green"]))
    given = pipeline(text=text, negative_text=null, seeds=[1, 2], num_inference_steps=2, output_type="np").images
    named = pipeline(["red", "blue"], [1, 2], 2, negative_prompt="green", output_type="np").images
    assert np.array_equal(given, named)
    with pytest.raises(ValueError, match="neither prompt nor text"):
        pipeline(seeds=1)


def test_rescaled_guidance_keeps_the_contrast_of_the_prediction_with_text(pipeline, monkeypatch):
    """Lin et al., arXiv 2305.08891, eq. 14 to 16: at 1 the guided prediction has the other's standard deviation."""
    seen: list[torch.Tensor] = []
    step = pipeline.scheduler.step
    monkeypatch.setattr(pipeline.scheduler, "step", lambda p, t, z: seen.append(p) or step(p, t, z))
    for scale, rescale in ((1.0, 0.0), (8.0, 0.0), (8.0, 1.0), (8.0, 0.7)):
        pipeline("red", 1, 1, scale, guidance_rescale=rescale, output_type="latent")
    with_text, guided, rescaled, between = (p.std().item() for p in seen)
    assert rescaled == pytest.approx(with_text, rel=1e-4)
    assert between == pytest.approx(0.7 * with_text + 0.3 * guided, rel=1e-4)


@pytest.mark.parametrize("middle", ["full", "joint"])
def test_attention_is_chosen_where_the_network_runs_not_where_it_was_built(middle, monkeypatch):
    """A network that was built on the CPU must not keep a matrix of positions by positions on a GPU."""
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or fused(*a, **k))
    network: Any = build_denoiser(DenoiserConfig((32, 64), (False, True), 1, middle), 4, 8)
    for device, expected in (("cpu", False), ("meta", True)):
        text = TextFeatures(
            torch.zeros(1, 5, 8, device=device),
            torch.ones(1, 5, dtype=torch.bool, device=device),
            torch.zeros(1, 8, device=device),
        )
        z, t = torch.zeros(1, 4, 8, 8, device=device), torch.zeros(1, dtype=torch.long, device=device)
        denoise(network.to(device), z, t, text)
        assert bool(calls) == expected


def test_output_types_sizes_and_precision(pipeline):
    images = pipeline("red", 1, 2, output_type="np", height=48, width=32).images
    assert images.shape == (1, 48, 32, 3) and images.min() >= 0 and images.max() <= 1
    (tensor,) = pipeline("red", 1, 2, output_type="pt", height=48, width=32, return_dict=False)
    assert np.allclose(tensor[0].permute(1, 2, 0).numpy(), images[0])
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert pipeline("red", latents=latents, num_inference_steps=2, output_type="latent").images.shape == latents.shape
    pipeline.to(torch.bfloat16)
    assert pipeline("red", 1, 2).images[0].size == (32, 32)


def test_numbers_that_do_not_match_are_refused(pipeline):
    with pytest.raises(ValueError, match="one seed per picture"):
        pipeline(["red", "blue"], [1])
    with pytest.raises(ValueError, match="generators"):
        pipeline(["red", "blue"], generator=[torch.Generator()])
    with pytest.raises(ValueError, match="give one of them"):
        pipeline("red", 1, generator=torch.Generator())
    with pytest.raises(ValueError, match="multiples of 8"):
        pipeline("red", 1, height=36)
    with pytest.raises(ValueError, match="negative prompts"):
        pipeline("red", 1, negative_prompt=["a", "b"])


ALONE = """
import json, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("emu_"):
            raise ModuleNotFoundError(f"{name} is hidden")
sys.meta_path.insert(0, Hidden())
import numpy as np
from diffusers import DiffusionPipeline
folder, again = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
pipeline.set_progress_bar_config(disable=True)
pipeline.save_pretrained(again)
pipeline = DiffusionPipeline.from_pretrained(again, trust_remote_code=True, local_files_only=True)
pipeline.set_progress_bar_config(disable=True)
image = pipeline(["red"], [1], 3).images[0]
modules = [name for name in sys.modules if name.startswith("emu_")]
print(json.dumps({"image": np.asarray(image).tolist(), "modules": modules, "class": type(pipeline).__module__}))
"""


def test_a_saved_folder_loads_where_emu_is_not_installed(pipeline, tmp_path):
    """With the classes that it contains, in a process that cannot import ours; saved again there, it loads here."""
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
        assert type(loaded) is EmuPipeline and type(loaded.vae) is Autoencoder
        assert np.abs(array(draw(loaded, ["red"], [1], 3)[0]) - expected).max() <= 1
    for name in ("pipeline.py", "vae/emu_latent_autoencoder_network.py"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "saved" / name).read_text()


def test_code_in_a_folder_runs_only_if_it_is_trusted(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.py"):
        file.write_text("raise RuntimeError('the code of the folder ran')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert isinstance(load_pipeline(tmp_path), EmuPipeline)


@pytest.mark.parametrize("kind", ["ours", "sd1", "sdxl"])
def test_the_same_model_has_the_same_bytes_wherever_it_was_loaded_from(pipeline, tmp_path, kind):
    """In two clones, what they tune from is at different places, and so are the packages that contain text encoders."""
    places = [tmp_path / "clone", tmp_path / "deeper" / "clone_2"]
    for place in places:
        if kind == "ours":
            save_pipeline(pipeline, place / "base")
        else:
            make_checkpoint(kind, place / "base")
        loaded = load_pipeline(place / "base")
        add_adapters(loaded.unet, Adapters(2, 2.0, ("to_q",)))
        torch.manual_seed(0)
        for name, parameter in loaded.unet.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(parameter)
        save_pipeline(loaded, place / "tuned")
    one, two = (
        {p.relative_to(place): p.read_bytes() for p in (place / "tuned").rglob("*") if p.is_file()} for place in places
    )
    assert one == two
    for name, content in one.items():
        assert not any(str(folder).encode() in content for folder in (tmp_path, sys.prefix)), name
    assert load_pipeline(places[1] / "tuned")


def test_our_adapters_load_like_any_others(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "base")
    (plain,) = draw(pipeline, ["red"], [1], 3)
    add_adapters(pipeline.unet, Adapters(2, 8.0, ("to_q", "to_v")))
    for name, parameter in pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_pipeline(pipeline, tmp_path / "tuned")
    (merged,) = draw(load_pipeline(tmp_path / "tuned"), ["red"], [1], 3)
    base = load_pipeline(tmp_path / "base")
    base.load_lora_weights(tmp_path / "tuned", weight_name="pytorch_lora_weights.safetensors", local_files_only=True)
    (adapted,) = draw(base, ["red"], [1], 3)
    assert np.abs(array(adapted) - array(merged)).max() <= 1
    assert np.abs(array(adapted) - array(plain)).max() > 2
