"""The trainings of the pixel family as jobs (emu_models/training/jobs.py): a cascade's base, and its upscaler."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from emu_models.latent.jobs import CaptionedJob, DenoiserConfig
from emu_models.training.jobs import WEIGHTS

if TYPE_CHECKING:
    from emu_models.training.running import Running

Stage = Literal["base", "upscaler"]


@dataclass(frozen=True, kw_only=True)
class CascadeJob(CaptionedJob):
    """The training of one network of a cascade in pixels; the result is a pipeline that draws (EmuCascadePipeline).

    stage "base" learns small pictures; its result has an upscaler only if start_from has one, and else enlarges them
    smoothly. Stage "upscaler" learns to draw the whole picture beside a small one. Its result has the base network of
    `base`, a folder that a training of the base left, which is therefore needed; with start_from too, a cascade, the
    upscaler is continued from there.

    denoiser: a new network, without start_from, and patch, of how many pixels per side it sees as one position. ratio:
    pixels of a picture per pixel of the small one and side; None keeps that of start_from or base. noise_shift: of the
    stage's schedule (diffusion/schedule.py); None keeps that of start_from, or is 1.

    Of the upscaler: max_augmentation: 0..1, up to which level noise is added to the small pictures that it learns with.
    augmentation: 0..max_augmentation, the level at which the pipeline draws, by default. crop: side, in px, of random
    parts of pictures that it learns from, or None for whole ones.
    """

    stage: Stage
    base: Annotated[Path | None, WEIGHTS] = None
    denoiser: DenoiserConfig | None = None
    patch: int = 1
    ratio: int | None = None
    noise_shift: float | None = None
    max_augmentation: float = 0.5
    augmentation: float = 0.1
    crop: int | None = None

    def check(self) -> None:
        """Raise ValueError for values that do not fit together, which names the entry and says what to do."""
        wrong = self._find_wrong()
        if wrong is not None:
            raise ValueError(f"{self.name}.{wrong}")

    def _find_wrong(self) -> str | None:
        """Return what does not fit together, and what to do."""
        if self.stage == "upscaler" and self.base is None:
            return "base is missing: an upscaler needs the folder of a trained base, which its cascade draws with"
        if self.stage == "base" and self.base is not None:
            return "base is for upscalers; give start_from to continue a base"
        if (self.denoiser is None) == (self.start_from is None):
            return "denoiser is for new networks, and start_from for trained ones; give one of them"
        if self.ratio is None and self.start_from is None and self.base is None:
            return "ratio is missing: a new cascade needs the pixels of a picture per pixel of the small one"
        if self.patch < 1 or (self.ratio is not None and self.ratio < 2):
            return f"patch is {self.patch} and ratio {self.ratio}; they must be at least 1 and 2"
        if self.stage == "upscaler" and self.denoiser is not None and self.denoiser.size_conditioning:
            return "denoiser.size_conditioning is for networks that learn alone; set it to false for an upscaler"
        if not 0 <= self.augmentation <= self.max_augmentation <= 1:
            return f"augmentation is {self.augmentation} and max_augmentation {self.max_augmentation}; 0..1, in order"
        if self.crop is not None and (self.stage == "base" or not 0 < self.crop <= self.resolution):
            return f"crop is {self.crop}; it is for upscalers, and lies between 1 and the resolution {self.resolution}"
        return None

    def run(self, running: "Running") -> dict[str, Any]:
        """Train; see `pixel.trainings.train_cascade`."""
        from emu_models.pixel.trainings import train_cascade

        return self.reported_result(train_cascade(self, running))

    def contents(self) -> dict[str, str]:
        """Return digests of the text encoders that a new base gets; none if another pipeline brings its own."""
        return {} if self.base is not None else super().contents()
