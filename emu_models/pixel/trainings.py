"""The trainings of a cascade in pixels: the base on small pictures, the upscaler on whole ones.

Small pictures are always the whole ones scaled down by pixel.scaling.shrink, for both networks.
"""

from functools import partial
from typing import Any

from emu_models.checkpoints import hide_bars, load_pipeline, place, set_resolution
from emu_models.latent.trainings import Learning, train_network
from emu_models.pixel.denoising import pixel_multiple
from emu_models.pixel.jobs import CascadeJob
from emu_models.pixel.learner import PixelLearner, UpscalerLearner
from emu_models.pixel.network import build_base, build_pixel_scheduler, build_upscaler
from emu_models.pixel.pipeline import EmuCascadePipeline
from emu_models.pixel.space import PixelSpace
from emu_models.text import load_text_encoders
from emu_models.training.loop import TrainingResult
from emu_models.training.running import UNHEARD, Running


def train_cascade(job: CascadeJob, running: Running = UNHEARD) -> TrainingResult:
    """Train a cascade's base or upscaler, unless that was done before, and return the result; the complete pipeline is
    in `folder`/result (latent.trainings.train_network). Raises ValueError, before anything is read, for settings that
    do not fit together."""
    job.check()
    return train_network(job, lambda: _begin(job), running)


def _begin(job: CascadeJob) -> Learning:
    """Return what a training starts from. Raises ValueError for folders or sizes that do not fit together."""
    pipeline = _base_pipeline(job) if job.stage == "base" else _with_upscaler(job)
    config: Any = pipeline.config
    set_resolution(pipeline, job.resolution)
    for name, wanted in (("num_text_tokens", job.num_text_tokens), ("ratio", job.ratio or config.ratio)):
        if config[name] != wanted:
            raise ValueError(f"{job.name}.{name} is {wanted}, but its cascade was begun with {config[name]}; give that")
    if job.resolution % pipeline.multiple:
        raise ValueError(
            f"{job.name}.resolution is {job.resolution}; it must be a multiple of {pipeline.multiple}, since small "
            f"pictures have a {config.ratio}th of its pixels per side and both networks halve theirs between levels"
        )
    place(pipeline)
    if job.stage == "base":
        multiple = pipeline.multiple // config.ratio
        return Learning(pipeline, "unet", PixelSpace(config.ratio), multiple, pipeline.scheduler, PixelLearner)
    multiple = _refuse_crop(job, pipeline)
    learner = partial(UpscalerLearner, ratio=config.ratio, max_augmentation=job.max_augmentation, crop=job.crop)
    return Learning(pipeline, "super_unet", PixelSpace(), multiple, pipeline.super_scheduler, learner)


def _refuse_crop(job: CascadeJob, pipeline: EmuCascadePipeline) -> int:
    """Return what the sides of the upscaler's pictures must be multiples of. Raises ValueError for a crop that is no
    multiple of what its network needs."""
    assert pipeline.super_unet is not None
    config: Any = pipeline.config
    for multiple in (pixel_multiple(pipeline.super_unet), config.ratio):
        if job.crop is not None and job.crop % multiple:
            raise ValueError(f"{job.name}.crop is {job.crop}; it must be a multiple of {multiple}")
    return pipeline.multiple


def _base_pipeline(job: CascadeJob) -> EmuCascadePipeline:
    """Return the cascade whose base learns: that of start_from, or a new one without an upscaler."""
    if job.start_from is not None:
        pipeline = _load(job, "start_from")
        if job.noise_shift is not None:
            pipeline.scheduler = build_pixel_scheduler(job.noise_shift)
        return pipeline
    assert job.denoiser is not None and job.ratio is not None
    hide_bars()
    encoders = load_text_encoders(job.text_encoder)
    return EmuCascadePipeline(
        unet=build_base(job.denoiser, encoders.token_width, encoders.pooled_width, job.patch),
        scheduler=build_pixel_scheduler(job.noise_shift or 1.0),
        **encoders.components(),
        resolution=job.resolution,
        num_text_tokens=job.num_text_tokens,
        ratio=job.ratio,
    )


def _with_upscaler(job: CascadeJob) -> EmuCascadePipeline:
    """Return the cascade of `base` with the upscaler that learns: that of start_from, or a new one."""
    pipeline = _load(job, "base")
    if job.start_from is None:
        assert job.denoiser is not None
        encoders = pipeline.text_encoders
        network = build_upscaler(job.denoiser, encoders.token_width, encoders.pooled_width, job.patch)
        scheduler: Any = build_pixel_scheduler(job.noise_shift or 1.0, "sample")
    else:
        other = _load(job, "start_from")
        network, scheduler = other.super_unet, other.super_scheduler
        if network is None:
            raise ValueError(f"{job.name}.start_from: {job.start_from} has no upscaler; give a whole cascade")
        if other.config["ratio"] != pipeline.config["ratio"]:
            raise ValueError(f"{job.name}: base and start_from have different ratios; give those of one cascade")
        if job.noise_shift is not None:
            scheduler = build_pixel_scheduler(job.noise_shift, "sample")
    pipeline.register_modules(super_unet=network, super_scheduler=scheduler)
    pipeline.register_to_config(augmentation=job.augmentation)
    return pipeline


def _load(job: CascadeJob, field: str) -> EmuCascadePipeline:
    folder = getattr(job, field)
    pipeline = load_pipeline(folder)
    if not isinstance(pipeline, EmuCascadePipeline):
        raise ValueError(
            f"{job.name}.{field}: {folder} holds a {type(pipeline).__name__}; give a cascade (EmuCascadePipeline)"
        )
    return pipeline
