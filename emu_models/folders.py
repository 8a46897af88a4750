"""What a checkpoint's folder holds, read from its small files and the headers of its weights, without torch.

So `emu doctor`, `emu materialize` and the loader (checkpoints.py) can all refuse, within seconds, a folder that cannot
be tuned or drawn with.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WITH_UNET = ("EmuPipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline")
# Those of rectified flow (emu_models.flow.layouts) -> channels of a position of its transformer per latent channel.
WITH_TRANSFORMER = {"StableDiffusion3Pipeline": 1, "FluxPipeline": 4, "SanaPipeline": 1, "QwenImagePipeline": 4}
OUR_FLOW = "EmuFlowPipeline"  # on latents or, without a vae/, on pixels
TUNED = (*WITH_UNET, OUR_FLOW, *WITH_TRANSFORMER)  # what a DenoiserJob can tune
WITH_TOKENS = "EmuMaskedPipeline"
CASCADE = "EmuCascadePipeline"  # in pixels: a U-Net for small pictures, and perhaps one that raises the resolution
LAYOUTS = (*TUNED, WITH_TOKENS, CASCADE)
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
# Parts of these pipelines that have weights; the others are tokenizers and schedulers, for instance.
WITH_WEIGHTS = (
    *("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
    *("safety_checker", "image_encoder", "super_unet"),
)
# Names that diffusers and transformers give to weights: one file, or shards that an index lists, possibly of a variant.
WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")
INDEX = re.compile(r"(?:diffusion_pytorch_)?model\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
POINTER = b"version https://git-lfs"  # the beginning of a file that git-lfs has not fetched
# Defaults of diffusers 0.42 for entries that a config lacks.
DEFAULTS = {"in_channels": 4, "latent_channels": 4, "prediction_type": "epsilon"}


@dataclass(frozen=True)
class Found:
    """A checkpoint. layout: one of LAYOUTS. variant: of the files to read ("fp16"), None for files without a
    variant."""

    layout: str
    variant: str | None


def inspect_checkpoint(folder: Path) -> Found:
    """Read what a checkpoint's folder holds, and check that its weights are complete.

    Raises ValueError, in one sentence that says what to do, if it is not a checkpoint, cannot be tuned, or lacks
    something.
    """
    if folder.is_file():
        raise ValueError(_single(folder))
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {folder}; give the folder of a checkpoint in diffusers' layout (from a hub: `hf "
            "download NAME --local-dir FOLDER`), or materialise the asset that writes it"
        )
    if not (folder / "model_index.json").is_file():
        single = sorted(f for f in folder.iterdir() if f.suffix in SINGLE_FILES and f.is_file())
        if single and not (folder / "config.json").is_file() and "lora" not in single[0].name:
            raise ValueError(_single(single[0]))
        raise ValueError(
            f"{folder} holds no pipeline (no model_index.json); give the folder above its unet/ and vae/, or "
            "materialise the asset that writes it"
        )
    index = _read_json(folder / "model_index.json")
    named = index.get("_class_name")
    layout = named[-1] if isinstance(named, list) and named else named
    if layout not in LAYOUTS:
        raise ValueError(f"{folder} holds a {layout}; only {', '.join(LAYOUTS)} can be tuned and drawn with")
    parts = [name for name, entry in index.items() if isinstance(entry, list) and name[0] != "_" and all(entry)]
    if missing := [name for name in parts if not (folder / name).is_dir()]:
        raise ValueError(
            f"{folder} lacks {_listed(f'{m}/' for m in missing)}, named in its model_index.json; download it again"
        )
    weighty = [name for name in parts if name in WITH_WEIGHTS]
    for name in weighty:
        _refuse_quantised(folder, name)
    if layout == WITH_TOKENS:
        _refuse_transformer_of_other_tokens(folder)
    elif layout in WITH_UNET:
        _refuse_unet_that_does_not_fit(folder)
    elif layout == CASCADE:
        _refuse_cascade_that_does_not_fit(folder, parts)
    else:
        _refuse_transformer_that_does_not_fit(folder, WITH_TRANSFORMER.get(layout, 1), "vae" in parts)
    return Found(layout, _choose_variant(folder, weighty))


def inspect_tunable(folder: Path) -> Found:
    """Do as `inspect_checkpoint`, for a checkpoint that quality_tuned (a latent.jobs.DenoiserJob) is to start from.
    Raises ValueError also if only its own family's trainings can tune it."""
    found = inspect_checkpoint(folder)
    if found.layout not in TUNED:
        raise ValueError(
            f"{folder} holds a {found.layout}, which quality_tuned cannot tune; family_study tunes such models, and "
            f"quality_tuned.start_from takes one of {', '.join(TUNED)}"
        )
    return found


def _single(file: Path) -> str:
    return (
        f"{file} is a checkpoint in a single file, but only folders in diffusers' layout can be used; convert it once: "
        f"`python -c \"from diffusers import StableDiffusionPipeline as P; P.from_single_file('{file}')"
        ".save_pretrained('FOLDER')\"` (StableDiffusionXLPipeline for SDXL), and name FOLDER"
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing; download the checkpoint again") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error}); download the checkpoint again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not a JSON object; download the checkpoint again")
    return found


def _refuse_quantised(folder: Path, part: str) -> None:
    if _read_json(folder / part / "config.json").get("quantization_config"):
        raise ValueError(
            f"{folder}: the weights of {part}/ are quantised, which cannot be tuned; give the original ones"
        )


def _refuse_transformer_that_does_not_fit(folder: Path, per_channel: int, on_latents: bool) -> None:
    network = _read_json(folder / "transformer" / "config.json")
    vae = _read_json(folder / "vae" / "config.json") if on_latents else {"latent_channels": 3}
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    if not (scheduler.get("_class_name", "").startswith("FlowMatch") or scheduler.get("use_flow_sigmas")):
        raise ValueError(
            f"{folder}: its scheduler {scheduler.get('_class_name')} is not one of rectified flow, with which such a "
            "network learns; give the checkpoint's own (FlowMatchEulerDiscreteScheduler)"
        )
    channels = vae.get("latent_channels") or vae.get("z_dim")
    takes = network.get("in_channels")
    if takes and channels and takes != per_channel * channels:
        raise ValueError(
            f"{folder}: its transformer takes {takes} channels where latents give {per_channel * channels}; it needs "
            "more than noisy latents and text (inpainting, control); give a plain text-to-image checkpoint"
        )


def _refuse_transformer_of_other_tokens(folder: Path) -> None:
    network, vae = (_read_json(folder / name / "config.json") for name in ("transformer", "vae"))
    codes = network.get("codebook_size"), math.prod(vae.get("levels", ()))
    if codes[0] != codes[1]:
        raise ValueError(
            f"{folder}: its transformer knows {codes[0]} codes where the levels of its tokenizer give {codes[1]}; they "
            "are of two models, so give a folder as it was saved"
        )


def _refuse_cascade_that_does_not_fit(folder: Path, parts: list[str]) -> None:
    """Each of its U-Nets sees RGB pixels, the upscaler also those of the enlarged small picture."""
    for name, times in (("unet", 1), ("super_unet", 2)):
        if name not in parts:
            if name == "unet":
                raise ValueError(f"{folder} has no unet/, which draws small pictures; download it again")
            continue
        unet = _read_json(folder / name / "config.json")
        takes, gives = unet.get("in_channels", 0), unet.get("out_channels", 0)
        if gives < 3 or gives % 3 or takes != times * gives:
            raise ValueError(
                f"{folder}: {name}/ takes {takes} channels and gives {gives}, where a cascade in pixels gives a "
                f"multiple of 3 and takes {times} times as many; give a folder that a training of a cascade wrote"
            )
        scheduler = "scheduler" if name == "unet" else "super_scheduler"
        if scheduler not in parts:
            raise ValueError(f"{folder} has {name}/ but no {scheduler}/; download it again")
        _refuse_prediction(folder, scheduler)


def _refuse_prediction(folder: Path, part: str = "scheduler") -> None:
    scheduler = _read_json(folder / part / "scheduler_config.json")
    predicts = scheduler.get("prediction_type", DEFAULTS["prediction_type"])
    if predicts not in PREDICTION_TYPES:
        raise ValueError(
            f"{folder}: prediction_type {predicts!r} cannot be used; give a checkpoint with "
            f"{' or '.join(PREDICTION_TYPES)}"
        )
    if scheduler.get("rescale_betas_zero_snr") and predicts == "epsilon":
        raise ValueError(no_signal_left(folder))


def _refuse_unet_that_does_not_fit(folder: Path) -> None:
    unet, vae = (_read_json(folder / name / "config.json") for name in ("unet", "vae"))
    _refuse_prediction(folder)
    channels = unet.get("in_channels", DEFAULTS["in_channels"]), vae.get("latent_channels", DEFAULTS["latent_channels"])
    if channels[0] != channels[1] or unet.get("time_cond_proj_dim") is not None:
        raise ValueError(
            f"{folder}: its U-Net needs more than noisy latents and text (inpainting, distilled guidance); give a "
            "plain text-to-image checkpoint"
        )
    if vae.get("shift_factor"):
        raise ValueError(
            f"{folder}: its autoencoder has a shift_factor, which such a pipeline ignores; give another checkpoint"
        )


def no_signal_left(folder: Path) -> str:
    """Explain why a checkpoint that predicts noise cannot have a schedule that ends in pure noise (Lin et al., arXiv
    2305.08891, sec. 3.3)."""
    return (
        f"{folder}: it predicts the noise (epsilon), but its schedule ends in pure noise (rescale_betas_zero_snr), "
        "from which noise says nothing about the picture; give a v_prediction checkpoint, or set "
        "rescale_betas_zero_snr to false in scheduler/scheduler_config.json if it was trained without"
    )


def _choose_variant(folder: Path, parts: list[str]) -> str | None:
    """Return None if every part has files without a variant, otherwise a variant that all other parts have, fp16 first.
    Raises ValueError if there is none, or files are missing or broken."""
    held = {name: _variants_of(folder / name) for name in parts}
    for name, variants in held.items():
        if not variants:
            raise ValueError(_without_safetensors(folder, name))
    only = {name: variants for name, variants in held.items() if None not in variants}
    shared = set.intersection(*(set(v) for v in only.values())) if only else {None}
    if not shared:
        found = _listed(f"{name}/ {' or '.join(sorted(map(str, variants)))}" for name, variants in only.items())
        raise ValueError(f"{folder}: its parts have different variants ({found}); download all parts in one variant")
    variant = min(shared, key=lambda v: (v != "fp16", str(v)))
    for variants in held.values():
        for file in variants[variant if variant in variants else None]:
            _refuse_broken(file)
    return variant


def _variants_of(part: Path) -> dict[str | None, list[Path]]:
    """Return variant -> its files of weights; files that an index lists need not exist."""
    found: dict[str | None, list[Path]] = {}
    names = sorted(file.name for file in part.iterdir())
    for name in names:
        if match := INDEX.fullmatch(name):
            listed = _read_json(part / name).get("weight_map", {})
            found[match["variant"]] = [part / file for file in sorted(set(listed.values()))]
    for name in names:
        if (match := WEIGHTS.fullmatch(name)) and "-of-" not in name:  # loaders prefer a single file to shards
            found[match["variant"]] = [part / name]
    return found


def _without_safetensors(folder: Path, part: str) -> str:
    names = sorted(file.name for file in (folder / part).iterdir())
    if pickled := [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
        return (
            f"{folder}: {part}/ has weights only as {pickled[0]}, a pickle, which is never read here; convert it once, "
            f"if you trust it: `python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('{folder}')"
            ".save_pretrained('FOLDER')\"`, and name FOLDER"
        )
    if shards := [name for name in names if "-of-" in name and name.endswith(".safetensors")]:
        return (
            f"{folder}: {part}/ has shards such as {shards[0]} but no index of them (*.safetensors.index.json); "
            "download it again"
        )
    holds = f"only {_listed(names)}" if names else "and is empty"
    return f"{folder}: {part}/ has no weights (*.safetensors), {holds}; download it again"


def _refuse_broken(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ValueError(f"{file} is missing, although its index lists it; download the checkpoint again")
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise ValueError(f"{file} is only a git-lfs pointer to the weights: run `git lfs pull` in that folder")
    try:
        with safe_open(file, framework="numpy"):  # reads the header and compares the file's length with it
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}); download it again") from None


def _listed(names: Any) -> str:
    return ", ".join(names)
