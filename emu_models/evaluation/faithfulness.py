"""Whether the picture shows what the caption says (paper sec. 4: 3 annotators, A / B / both / neither, appeal ignored).

There are two measures by one judge model (judge.py). The naming rate says how often a picture's own caption is the best
(top 1) or among the five best (top 5) of all subject captions. Side-by-side votes come from three automatic raters that
stand in for the paper's three people; each sees a different view of the pictures and is differently strict. They are
labelled as automatic wherever they appear. Rules and constants are chosen here.
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
    """Naming rates in per cent of pictures, with 95 % intervals over prompts; chance_top_5 is what guessing gives."""

    num_images: int
    num_captions: int
    top_1: Interval
    top_5: Interval
    chance_top_5: float


@dataclass(frozen=True)
class FaithfulnessRater:
    """An automatic rater. view: uint8 (N, H, W, 3) -> the same shape. top_share: 0..1; a picture shows its caption if
    at most this share of all captions fits it better. margin: standard deviations; two pictures whose fits differ by
    less count as equal.
    """

    name: str
    view: Callable[[np.ndarray], np.ndarray]
    top_share: float
    margin: float


def view_whole(images: np.ndarray) -> np.ndarray:
    """Return uint8 (N, H, W, 3) pictures unchanged."""
    return images


def view_crop(images: np.ndarray) -> np.ndarray:
    """Return the central part of uint8 (N, H, W, 3) pictures, enlarged to the original size."""
    height, width = images.shape[1:3]
    rim_y, rim_x = (round(side * (1 - CROP_SHARE) / 2) for side in (height, width))
    box = (rim_x, rim_y, width - rim_x, height - rim_y)
    resized = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC, box=box) for one in images]
    return np.stack([np.asarray(one) for one in resized])


def view_mirror(images: np.ndarray) -> np.ndarray:
    """Return uint8 (N, H, W, 3) pictures mirrored and shifted right and down, with the border repeated."""
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
    """Return how well each of M captions fits each of N pictures, (N, M): the cosine, in standard deviations around the
    picture's mean over all captions. A picture that is near every caption fits none well. image_embeddings: (N, D),
    caption_embeddings: (M, D), rows of length 1.
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
    """Return the naming rates of uint8 (N, H, W, 3) pictures with N captions among all (distinct) subject captions.

    Pictures with one caption count as one unit. Raises ValueError if a caption is not among `all_captions`.
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
    """The first `num_raters` of RATERS, with one judge. subjects: captions that a pair's own caption is compared with,
    which must be among them. seed: decides which model is on the left. Raises ValueError for more raters than there
    are.
    """

    judge: Judge
    subjects: Collection[str]
    num_raters: int = len(RATERS)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_raters <= len(RATERS):
            raise ValueError(f"num_raters is {self.num_raters}; the faithfulness panel can have 1 to {len(RATERS)}")

    def vote(self, items: Sequence[Pair]) -> list[Vote]:
        """Return every rater's vote on every pair; see `votes.items.Panel`. Also raises ValueError if a caption is not
        among the subjects.

        The rater's `top_share` decides whether a picture shows its caption. If both do, the vote is both; if none does,
        neither; if one does, that one, unless their fits differ by less than the rater's margin: then both or neither,
        according to the mean of the two. `Vote.score` is A's fit (`score_fit`) minus B's.
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
    """Return N decisions from fits (N,) and whether each picture shows its caption (N,); see `FaithfulnessPanel.vote`.

    threshold: (N,), the fit from which on a caption counts as shown. margin: as in FaithfulnessRater.
    """
    is_close = np.abs(fit_a - fit_b) < margin
    mean_shows = 0.5 * (fit_a + fit_b) >= threshold
    return np.select(
        [shows_a & shows_b, ~shows_a & ~shows_b, is_close & mean_shows, is_close, shows_a],
        ["both", "neither", "both", "neither", "A"],
        default="B",
    )


def _own_columns(captions: Sequence[str], subjects: Sequence[str], num_images: int) -> np.ndarray:
    if len(captions) != num_images:
        raise ValueError(f"{num_images} pictures and {len(captions)} captions: the numbers must be equal")
    column = {caption: index for index, caption in enumerate(subjects)}
    unknown = sorted(set(captions) - set(column))
    if unknown:
        raise ValueError(
            f"{len(unknown)} captions are not among the {len(subjects)} subjects to compare with, the first is "
            f"{unknown[0]!r}; use only captions that are among them"
        )
    return np.array([column[caption] for caption in captions], dtype=int)
