"""Does the picture show what the caption says (paper sec. 4: 3 annotators, A / B / both / neither, appeal
ignored).

Two measures by one judge model (judge.py). The naming rate: how often a picture's own caption is the best
(top 1) or among the five best (top 5) of all subject captions. And side-by-side votes by three automatic
raters, who stand in for the paper's three people: each looks at another view of the pictures and is strict
to another degree. They are labelled as automatic wherever they appear. Rules and constants are ours.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.votes.intervals import Interval, bootstrap_rate
from emu_data.votes.items import Pair, keys_of, stack_pictures
from emu_data.votes.pairs import draw_side_order
from emu_data.votes.vote import Vote, round_score
from emu_models.evaluation.judge import Judge

CROP_SHARE = 0.88  # side of the central crop, as a share of the picture's (chosen here)
SHIFT_SHARE = 1 / 16  # shift of the mirrored view, as a share of the picture's side (chosen here)


@dataclass(frozen=True)
class Naming:
    """Naming rates in per cent of pictures with 95 % intervals over prompts; chance_top_5 is what guessing
    gives.
    """

    num_images: int
    num_captions: int
    top_1: Interval
    top_5: Interval
    chance_top_5: float


@dataclass(frozen=True)
class FaithfulnessRater:
    """A view, and two margins: a picture shows its caption if no more than `top_share` of all captions fit
    it better; and two pictures whose fits differ by less than `margin` standard deviations are not told
    apart.
    """

    name: str
    view: Callable[[np.ndarray], np.ndarray]
    top_share: float
    margin: float


def view_whole(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) as it is."""
    return images


def view_crop(images: np.ndarray) -> np.ndarray:
    """The central part of uint8 (N, H, W, 3), enlarged to the old size."""
    height, width = images.shape[1:3]
    rim_y, rim_x = (round(side * (1 - CROP_SHARE) / 2) for side in (height, width))
    box = (rim_x, rim_y, width - rim_x, height - rim_y)
    resized = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC, box=box) for one in images]
    return np.stack([np.asarray(one) for one in resized])


def view_mirror(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) mirrored and shifted to the right and down, the border repeated."""
    height, width = images.shape[1:3]
    down, right = round(height * SHIFT_SHARE), round(width * SHIFT_SHARE)
    mirrored = np.pad(images[:, :, ::-1], ((0, 0), (down, 0), (right, 0), (0, 0)), mode="edge")
    return np.ascontiguousarray(mirrored[:, :height, :width])


# Strictness chosen here: at about 100 subject captions, 3, 5 and 8 captions may fit better.
RATERS = (
    FaithfulnessRater("judge-whole", view_whole, top_share=0.05, margin=0.10),
    FaithfulnessRater("judge-crop", view_crop, top_share=0.08, margin=0.15),
    FaithfulnessRater("judge-mirror", view_mirror, top_share=0.03, margin=0.20),
)


def score_fit(image_embeddings: np.ndarray, caption_embeddings: np.ndarray) -> np.ndarray:
    """How well each of M captions fits each of N pictures: cosine, in standard deviations around the
    picture's mean over all captions: (N, M). A picture that is near everything fits nothing well.
    """
    cosine = image_embeddings @ caption_embeddings.T
    return (cosine - cosine.mean(1, keepdims=True)) / np.maximum(cosine.std(1, keepdims=True), 1e-9)


def measure_naming(
    judge: Judge,
    images: np.ndarray,
    captions: Sequence[str],
    all_captions: Sequence[str],
    seed: int = 0,
) -> Naming:
    """Naming rates of uint8 (N, H, W, 3) pictures with N captions among all (distinct) subject captions.

    Pictures of one caption count as one unit. Raises ValueError if a caption is not among `all_captions`.
    """
    subjects = sorted(set(all_captions))
    own = _own_columns(captions, subjects, len(images))
    fit = score_fit(judge.embed_images(images), judge.embed_captions(subjects))
    num_better = (fit > fit[np.arange(len(own)), own][:, None]).sum(1)
    by_caption = pd.DataFrame({"caption": list(captions), "top_1": num_better < 1, "top_5": num_better < 5})
    rates = 100 * by_caption.groupby("caption")[["top_1", "top_5"]].mean()
    rng = np.random.default_rng(seed)
    return Naming(
        num_images=len(images),
        num_captions=len(subjects),
        top_1=bootstrap_rate(rates["top_1"].to_numpy(), rng),
        top_5=bootstrap_rate(rates["top_5"].to_numpy(), rng),
        chance_top_5=100 * min(1.0, 5 / len(subjects)),
    )


@dataclass(frozen=True)
class FaithfulnessPanel:
    """The first `num_raters` of RATERS, with one judge. subjects: captions that a pair's own is compared with, which is
    among them. seed: of which model stands left. Raises ValueError for more raters than there are.
    """

    judge: Judge
    subjects: Collection[str]
    num_raters: int = len(RATERS)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_raters <= len(RATERS):
            raise ValueError(f"num_raters is {self.num_raters}; the panel for faithfulness has 1 to {len(RATERS)}")

    def vote(self, items: Sequence[Pair]) -> list[Vote]:
        """Every rater's vote on every pair; see `votes.items.Panel`. ValueError also for a caption that is no subject.

        A picture shows its caption as the rater's strictness says: both do -> both, none does -> neither, one does ->
        that one, unless their fits differ by less than the rater's margin, then both or neither by the mean of the two.
        `Vote.score` is A's fit (`score_fit`) less B's.
        """
        if not items:
            return []
        keys = keys_of(items)
        models = [stack_pictures([item.image_a for item in items]), stack_pictures([item.image_b for item in items])]
        subjects = sorted(set(self.subjects))
        own = _own_columns([item.caption for item in items], subjects, len(items))
        caption_embeddings = self.judge.embed_captions(subjects)
        votes = []
        for rater in RATERS[: self.num_raters]:
            fits, shows, threshold = [], [], []
            for images in models:
                fit = score_fit(self.judge.embed_images(rater.view(images)), caption_embeddings)
                own_fit = fit[np.arange(len(own)), own]
                fits.append(own_fit)
                shows.append((fit > own_fit[:, None]).mean(1) <= rater.top_share)
                threshold.append(np.quantile(fit, 1 - rater.top_share, axis=1))
            decisions = decide(fits[0], fits[1], shows[0], shows[1], 0.5 * (threshold[0] + threshold[1]), rater.margin)
            votes += [
                Vote(
                    round="faithfulness",
                    rater=rater.name,
                    rater_kind="rubric",
                    key=key,
                    decision=str(decision),
                    score=round_score(float(fit_a) - float(fit_b)),
                    side_order=draw_side_order(self.seed, rater.name, key),
                )
                for key, decision, fit_a, fit_b in zip(keys, decisions, *fits, strict=True)
            ]
        return votes


def decide(
    fit_a: np.ndarray,
    fit_b: np.ndarray,
    shows_a: np.ndarray,
    shows_b: np.ndarray,
    threshold: np.ndarray,
    margin: float,
) -> np.ndarray:
    """Decisions (N,) from fits and from whether each picture shows its caption; see `FaithfulnessPanel.vote`."""
    is_close = np.abs(fit_a - fit_b) < margin
    mean_shows = 0.5 * (fit_a + fit_b) >= threshold
    return np.select(
        [shows_a & shows_b, ~shows_a & ~shows_b, is_close & mean_shows, is_close, shows_a],
        ["both", "neither", "both", "neither", "A"],
        default="B",
    )


def _own_columns(captions: Sequence[str], subjects: Sequence[str], num_images: int) -> np.ndarray:
    if len(captions) != num_images:
        raise ValueError(f"{num_images} pictures and {len(captions)} captions: they must be as many")
    column = {caption: index for index, caption in enumerate(subjects)}
    unknown = sorted(set(captions) - set(column))
    if unknown:
        raise ValueError(
            f"{len(unknown)} captions are not among the {len(subjects)} subjects that the judge knows, "
            f"the first is {unknown[0]!r}; ask for naming only where the subject is known"
        )
    return np.array([column[caption] for caption in captions], dtype=int)
