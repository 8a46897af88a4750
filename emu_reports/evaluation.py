"""The automatic report: pictures of all contestants, naming rates and near-copies. It needs no votes; the paper has no
such part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from emu_reports.page import Card, Picture, Run, describe_run, write_report

if TYPE_CHECKING:
    from emu_data.votes.intervals import Interval
    from emu_models.evaluation.faithfulness import Naming

NUM_NEAREST = 12  # generated pictures shown with their nearest training picture; chosen here


@dataclass(frozen=True)
class WantedKind:
    """Which pictures are of the kind that curation should find, called `name`. shares: contestant -> per cent of its
    pictures, by a classifier that told num_right of num_tried real pictures apart. difference: of the candidate from
    the other, in points. precision, recall: of the curated set among the filtered pictures, in per cent."""

    name: str
    shares: Mapping[str, "Interval"]
    difference: "Interval"
    num_right: int
    num_tried: int
    precision: "Interval"
    recall: "Interval"


@dataclass(frozen=True)
class AutomaticFindings:
    """What the automatic report shows.

    candidate: the contestant that is judged. judge: name of the model that named the pictures. judge_error: see
    known_pairs.JudgeError. naming: each contestant, and "real" if there are real pictures to compare with -> rates;
    empty if the judge knows the subject of no prompt. num_named: prompts whose subject it knows.

    nearest: contestant -> rows of `find_nearest`, in the order of the prompts. copies: contestant, or "real" for
    pictures that were not curated -> suspected copies in per cent. among: rows of `nearest_among` over the training
    pictures. frechet: contestant -> Fréchet distance to the curated set on the features named `frechet_features` (it is
    FID only on Inception's features). wanted: None if nothing says which pictures are of the wanted kind.
    """

    candidate: str
    judge: str
    judge_error: Mapping[str, Any]
    naming: Mapping[str, "Naming"]
    num_named: int
    nearest: Mapping[str, pd.DataFrame]
    copies: Mapping[str, "Interval"]
    among: pd.DataFrame
    frechet: Mapping[str, float]
    frechet_features: str
    wanted: WantedKind | None = None


def write_automatic_report(
    directory: Path,
    findings: AutomaticFindings,
    prompts: pd.DataFrame,
    pictures: Mapping[str, np.ndarray],
    training_keys: Sequence[str],
    training_images: np.ndarray,
    run: Run,
) -> dict[str, Any]:
    """Write the page and return what its report.json holds.

    prompts: columns key, prompt, fixed; one row per prompt. pictures: contestant -> uint8 (N, H, W, 3) in the order of
    the prompts. training_images: the pictures of `training_keys`, uint8 (M, H, W, 3), among which the nearest ones were
    searched.
    """
    saved: dict[str, Picture] = {}
    rows = save_pairs(prompts, pictures, saved)
    place = {key: index for index, key in enumerate(training_keys)}
    nearest = findings.nearest[findings.candidate].reset_index(drop=True)
    closest = []
    distance = nearest["pixel_distance"].to_numpy()
    for number, index in enumerate(np.argsort(distance, kind="stable")[:NUM_NEAREST]):
        name = f"nearest/{number:02d}"
        saved[name] = training_images[place[str(nearest["nearest_pixel_key"].iloc[index])]]
        closest.append({**rows[index], "nearest": f"{name}.png", "pixel_distance": distance[index]})
    data = {
        **describe_run(run),
        "contestants": list(pictures),
        "candidate": findings.candidate,
        "judge": findings.judge,
        "judge_error": findings.judge_error,
        "num_prompts": len(prompts),
        "naming": findings.naming,
        "num_named": findings.num_named,
        "copies": findings.copies,
        "copy_share": {who: share.estimate / 100 for who, share in findings.copies.items()},
        "copy_threshold": findings.among["pixel_distance"].quantile(0.05),  # memorisation.NEAR_QUANTILE
        "similarity": {name: table["similarity"].median() for name, table in findings.nearest.items()},
        "similarity_among": findings.among["similarity"].median(),
        "frechet": findings.frechet,
        "frechet_features": findings.frechet_features,
        "wanted": findings.wanted,
        "pairs": rows,
        "closest": closest,
    }
    return write_report(directory, "automatic", data, saved, cards=[Card("pairs", 10), Card("naming", 40)])


def save_pairs(
    prompts: pd.DataFrame, pictures: Mapping[str, np.ndarray], saved: dict[str, Picture]
) -> list[dict[str, Any]]:
    """Put every prompt's pictures into `saved` and return one row per prompt: key, prompt, fixed, pictures (contestant
    -> file).

    Raises ValueError if the number of a contestant's pictures differs from the number of prompts.
    """
    for contestant, images in pictures.items():
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} pictures of {contestant} for {len(prompts)} prompts: give one per prompt")
    rows = []
    for index, prompt in enumerate(prompts.to_dict(orient="records")):
        files = {}
        for contestant, images in pictures.items():
            name = f"pictures/{prompt['key']}-{contestant}"
            saved[name] = images[index]
            files[contestant] = f"{name}.png"
        is_fixed = bool(prompt.get("fixed", False))
        rows.append({"key": prompt["key"], "prompt": prompt["prompt"], "fixed": is_fixed, "pictures": files})
    return rows
