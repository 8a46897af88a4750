"""Generating the pictures that are judged, and the automatic report on them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from emu_data.files import atomic_dir, write_parquet
from emu_data.formatting import format_number
from emu_data.ledger import read_ledger
from emu_data.shards import read_images, read_manifest
from emu_reports.sheets import contact_sheet
from emu_steps.contestants import (
    Drawn,
    candidate_maker,
    find_pictures,
    is_model,
    read_drawn,
    read_pictures,
    read_square,
    write_drawn,
)
from emu_steps.evidence import NUM_NEAR, NUM_PICTURES, write_evidence
from emu_steps.layout import Layout
from emu_steps.params import EvaluationImages, Params

NUM_NEAREST = 16  # pictures of the candidate shown with the curated one nearest to them
BATCH = 32  # prompts at a time; fixed, since results move in the last bits with it
SHEET_TILE = 96  # px
MAX_REAL = 1000  # real pictures that are compared with the curated ones; chosen here


def choose_prompts(layout: Layout, params: Params) -> pd.DataFrame:
    """A row a prompt: key, prompt, caption (the prompt where the corpus has it as a caption, else ""), fixed, seed.

    The fixed prompts come first; then captions of the corpus, in an order drawn by the seed.
    """
    from emu_models.evaluation.prompts import common_prompts

    section = params.evaluation_images
    ledger = read_ledger(layout.filtered / "ledger")
    captions = ledger.loc[ledger["first_failed_gate"].isin(["", "quota", "duplicate"]), "caption"]
    names = sorted(set(captions))
    wanted = common_prompts(captions, len(names))
    rest = [name for name in wanted if name not in section.fixed_prompts]
    order = np.random.default_rng(section.seed).permutation(len(rest))
    chosen = [*section.fixed_prompts, *(rest[i] for i in order)][: section.num_prompts]
    return pd.DataFrame(
        {
            "key": [f"{i:04d}" for i in range(len(chosen))],
            "prompt": chosen,
            "caption": [name if name in names else "" for name in chosen],
            "fixed": [name in section.fixed_prompts for name in chosen],
            "seed": [section.seed + i for i in range(len(chosen))],
        }
    )


def draw_contestants(
    layout: Layout, params: Params, drawn: Drawn, registered: Mapping[str, Path]
) -> tuple[dict[str, float], Image.Image, Image.Image]:
    """Writes data/evaluation_images: prompts.parquet and a PNG a prompt and contestant; returns counts and two sheets.

    Models draw, and foreign pictures are cut, at the resolution of the tuning. drawn: what they are made of, kept
    beside the pictures (DRAWN_FILE), so that a verdict is of these models and no others. registered: contestant ->
    the folder of its registered version. ValueError, before anything is drawn, where a folder is no model and lacks a
    picture.
    """
    section, prompts = params.evaluation_images, choose_prompts(layout, params)
    folders = {name: registered.get(name, layout.root / address) for name, address in section.contestants.items()}
    brought = {
        name: find_pictures(name, folder, prompts["prompt"].tolist())
        for name, folder in folders.items()
        if not is_model(folder)
    }
    with atomic_dir(layout.evaluation) as folder:
        with tqdm(total=len(folders) * len(prompts), desc="evaluation_images", unit="picture") as bar:
            for name, source in folders.items():
                size = params.quality_tuned.resolution
                images = (
                    (read_square(path, size) for path in brought[name])
                    if name in brought
                    else draw_all(source, prompts, section, size)
                )
                (folder / name).mkdir()
                for key, image in zip(prompts["key"], images, strict=True):
                    image.save(folder / name / f"{key}.png")
                    bar.update()
        write_parquet(folder / "prompts.parquet", prompts)
        write_drawn(folder, drawn)
    names = list(folders)
    return (
        {"num_prompts": len(prompts), "num_images": len(names) * len(prompts)},
        fixed_prompts_sheet(layout),
        side_by_side(layout.evaluation, names, prompts[~prompts["fixed"]].head(48)),
    )


def draw_all(model: Path, prompts: pd.DataFrame, section: EvaluationImages, size: int) -> Iterator[Image.Image]:
    """A model's picture of each prompt, `size` px a side, in their order."""
    from emu_models.latent.checkpoints import load_pipeline
    from emu_models.latent.pipeline import draw

    pipeline = load_pipeline(model)
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), BATCH):
        some = prompts.iloc[start : start + BATCH]
        words, seeds = some["prompt"].tolist(), some["seed"].tolist()
        yield from draw(pipeline, words, seeds, section.num_inference_steps, section.guidance_scale, size)


def side_by_side(folder: Path, contestants: Sequence[str], prompts: pd.DataFrame) -> Image.Image:
    """Each prompt's picture of every contestant, the prompt under the first and the names under the others."""
    if not len(prompts):
        return Image.new("RGB", (1, 1))
    drawn = [read_pictures(folder, name, prompts) for name in contestants]
    images = [image for row in zip(*drawn, strict=True) for image in row]
    labels = [text for prompt in prompts["prompt"] for text in (prompt, *contestants[1:])]
    columns = max(1, 8 // len(contestants)) * len(contestants)
    return contact_sheet(np.stack(images), labels, columns=columns, tile=SHEET_TILE)


def fixed_prompts_sheet(layout: Layout) -> Image.Image:
    """The fixed prompts of data/evaluation_images, all contestants side by side."""
    prompts = pd.read_parquet(layout.evaluation / "prompts.parquet")
    return side_by_side(layout.evaluation, list(read_drawn(layout).made_by), prompts[prompts["fixed"]])


def nearest_sheet(
    prompts: pd.DataFrame, images: np.ndarray, nearest: pd.DataFrame, curated_keys: list[str], curated: np.ndarray
) -> Image.Image:
    """The pictures closest to a curated one, each with that one beside it and their distance below."""
    order = np.argsort(nearest["pixel_distance"].to_numpy(), kind="stable")[:NUM_NEAREST]
    place = {key: i for i, key in enumerate(curated_keys)}
    pairs = [p for i in order for p in (images[i], curated[place[nearest["nearest_pixel_key"].iloc[i]]])]
    away = [format_number(distance, 3) for distance in nearest["pixel_distance"]]
    labels = [text for i in order for text in (prompts["prompt"].iloc[i], f"curated, {away[i]} away")]
    return contact_sheet(np.stack(pairs), labels, columns=8, tile=SHEET_TILE)


def report_automatically(
    layout: Layout, params: Params, judged: Mapping[str, str]
) -> tuple[dict[str, float], Image.Image]:
    """Naming rates of real pictures and of each contestant's by a judge that filtering did not use; near-copies; a
    Fréchet distance on the judge's features to the curated set. Returns the metrics and the sheet of those of the
    candidate's pictures that come nearest to a curated one.

    The real pictures are those that the judge has not seen; for near-copies, those of them that were not curated, so
    that the contestants' shares can be read against that of pictures which copy nothing. judged: asset -> md5 of what
    the report is made of.
    """
    from emu_data.votes.intervals import exact_rate
    from emu_models.evaluation.faithfulness import measure_naming
    from emu_models.evaluation.judge import load_faithfulness_judge
    from emu_models.evaluation.memorisation import find_nearest, is_near_copy, nearest_among
    from emu_models.evaluation.reconstruction import frechet_distance
    from emu_models.judge_training import HELD_FILE
    from emu_reports.evaluation import AutomaticFindings, write_automatic_report
    from emu_reports.page import Run

    seed = params.automatic_report.seed
    judge, judge_error = load_faithfulness_judge(layout.model("faithfulness_judge"), layout.root)
    held = pd.read_parquet(layout.model("faithfulness_judge") / HELD_FILE)
    prompts = pd.read_parquet(layout.evaluation / "prompts.parquet")
    named = prompts[prompts["caption"] != ""]
    ledger = read_ledger(layout.filtered / "ledger")
    real_rows = ledger[ledger["first_failed_gate"].isin(["", "quota"])].sort_values("key")
    captions = sorted(set(real_rows["caption"]) | set(named["caption"]))
    curated = read_manifest(layout.curated)
    size = params.quality_tuned.resolution
    curated_images = read_images(layout.curated, curated["key"].tolist(), size)
    made_by, candidate = candidate_maker(layout, params.comparison), params.comparison[0]
    pictures = {name: read_pictures(layout.evaluation, name, prompts) for name in read_drawn(layout).made_by}

    real = held[held["caption"].isin(set(named["caption"]))]
    naming = {}
    if len(real):
        real_images = read_images(layout.raw, real["key"].tolist(), size)
        naming["real"] = measure_naming(judge, real_images, real["caption"].tolist(), captions, seed)
    curated_embeddings, curated_keys = judge.embed_images(curated_images), curated["key"].tolist()
    among = nearest_among(curated_embeddings, curated_images)
    others = real_rows.loc[~real_rows["key"].isin(curated_keys), "key"].head(MAX_REAL).tolist()
    nearest, distances = {}, {}
    for who, images in {**pictures, **({"real": read_images(layout.raw, others, size)} if others else {})}.items():
        embedded = judge.embed_images(images)
        nearest[who] = find_nearest(embedded, curated_embeddings, curated_keys, images, curated_images)
        if who in pictures:
            mask = (prompts["caption"] != "").to_numpy()
            naming[who] = measure_naming(judge, images[mask], named["caption"].tolist(), captions, seed)
            distances[who] = frechet_distance(embedded, curated_embeddings)
    copies = {who: (int(is_near_copy(found, among).sum()), len(found)) for who, found in nearest.items()}
    write_automatic_report(
        layout.report("automatic_report"),
        AutomaticFindings(
            candidate=candidate,
            judge=judge.name,
            judge_error=judge_error,
            naming=naming,
            nearest={name: nearest[name] for name in pictures},
            copies={who: exact_rate(*counts) for who, counts in copies.items()},
            among=among,
            frechet=distances,
            frechet_features="the judge's image embedding (not FID)",
        ),
        prompts,
        pictures,
        curated_keys,
        curated_images,
        Run(params.profile, params.toy, judged),
    )
    metrics: dict[str, float] = {}
    for who, rates in naming.items():
        metrics[f"named_top_1_{who}"] = rates.top_1.estimate
        metrics[f"named_top_5_{who}"] = rates.top_5.estimate
    for who, (num_near, num) in copies.items():
        metrics[NUM_NEAR + who], metrics[NUM_PICTURES + who] = num_near, num
        metrics[f"near_copy_share_{who}"] = num_near / num
    for name, distance in distances.items():
        metrics[f"frechet_to_curated_{name}"] = distance
    write_evidence(layout, "automatic_report", metrics, judged, candidate, made_by)
    return metrics, nearest_sheet(prompts, pictures[candidate], nearest[candidate], curated_keys, curated_images)
