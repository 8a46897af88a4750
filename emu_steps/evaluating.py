"""Draws the pictures that are judged, and writes the automatic report on them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from emu_data.files import atomic_dir, write_parquet
from emu_data.formatting import format_number
from emu_data.ledger import SOUND, read_ledger
from emu_data.shards import read_images, read_manifest
from emu_models.folders import inspect_checkpoint
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
from emu_steps.generating import describe_cut
from emu_steps.layout import Layout
from emu_steps.params import EvaluationImages, Params
from emu_steps.wanted import measure_wanted

NUM_NEAREST = 16  # pictures of the candidate shown with their nearest curated picture; chosen here
BATCH = 32  # prompts at a time; fixed, since it changes the last bits of the results; chosen here
SHEET_TILE = 96  # px; chosen here
MAX_REAL = 1000  # real pictures compared with the curated ones; chosen here


def choose_prompts(layout: Layout, params: Params) -> tuple[pd.DataFrame, dict[str, int]]:
    """Choose the prompts, one row each: key, prompt, caption (the prompt's caption in the corpus, "" if it is none),
    fixed, seed. Also return reason -> number of a file's lines that are not used.

    The fixed prompts come first, then those of prompts_file in its order (a sample by the seed, if there are too many)
    or, without a file, captions of the corpus in a random order that depends on the seed. Raises ValueError if there
    are no prompts.
    """
    from emu_models.evaluation.prompts import common_prompts, read_prompt_file

    section, counts = params.evaluation_images, dict[str, int]()
    ledger = read_ledger(layout.filtered / "ledger")
    captions = ledger.loc[ledger["first_failed_gate"].isin([*SOUND, "duplicate"]), "caption"].dropna()
    names = {caption.strip(): caption for caption in sorted(set(captions), reverse=True)}
    fixed = set(section.fixed_prompts)
    num_rest = None if section.num_prompts is None else section.num_prompts - len(fixed)
    rng = np.random.default_rng(section.seed)
    if section.prompts_file:
        given = read_prompt_file(layout.root / section.prompts_file)
        rest = [prompt for prompt in given.prompts if prompt not in fixed]
        asked = [rest[i] for i in sorted(rng.permutation(len(rest))[:num_rest])]
        counts = {
            "num_prompts_left_out": len(rest) - len(asked),
            "num_blank_lines": given.num_blank,
            "num_repeated_lines": given.num_twice,
        }
    else:
        wanted = common_prompts(captions, len(names)) if num_rest else []
        rest = [name for name in wanted if name not in fixed]
        asked = [rest[i] for i in rng.permutation(len(rest))][:num_rest]
    chosen = [*section.fixed_prompts, *asked]
    if not chosen:
        raise ValueError("evaluation_images has no prompts: list fixed_prompts, or name a prompts_file")
    prompts = pd.DataFrame(
        {
            "key": [f"{i:04d}" for i in range(len(chosen))],
            "prompt": chosen,
            "caption": [names.get(prompt.strip(), "") for prompt in chosen],
            "fixed": [prompt in fixed for prompt in chosen],
            "seed": [section.seed + i for i in range(len(chosen))],
        }
    )
    return prompts, counts


def known_subjects(prompts: pd.DataFrame, judge: Path) -> pd.Series:
    """Return the caption by which the judge in a folder can judge each prompt's pictures, "" if it cannot.

    A judge that was trained on the corpus knows only the words of its captions; open_clip weights know the prompt
    itself.
    """
    from emu_models.evaluation.judge import is_trained_here

    known = prompts["caption"] != ""
    return prompts["caption"] if is_trained_here(judge) else prompts["caption"].where(known, prompts["prompt"])


def draw_contestants(
    layout: Layout, params: Params, drawn: Drawn, registered: Mapping[str, Path]
) -> tuple[dict[str, float], Image.Image, Image.Image]:
    """Write data/evaluation_images: prompts.parquet, and a PNG per prompt and contestant. Return counts and two sheets.

    Models draw at the resolution of the tuning, and pictures from elsewhere are cropped and scaled to it. drawn: what
    the pictures are made from, saved with them (DRAWN_FILE) so that a verdict applies only to these models. registered:
    contestant -> the folder of its registered version.

    Raises ValueError, before anything is drawn, if a folder is not a model and lacks a picture, or is a model that
    cannot be loaded.
    """
    section, (prompts, counts) = params.evaluation_images, choose_prompts(layout, params)
    folders = {name: registered.get(name, layout.root / address) for name, address in section.contestants.items()}
    brought = {
        name: find_pictures(name, folder, dict(zip(prompts["key"], prompts["prompt"], strict=True)))
        for name, folder in folders.items()
        if not is_model(folder) and not folder.is_file()
    }
    for folder in folders.values():
        if is_model(folder) or folder.is_file():
            inspect_checkpoint(folder)
    with atomic_dir(layout.evaluation) as folder:
        with tqdm(total=len(folders) * len(prompts), desc="evaluation_images", unit="picture") as bar:
            for name, source in folders.items():
                size = params.quality_tuned.resolution
                images = (
                    (read_square(path, size) for path in brought[name])
                    if name in brought
                    else draw_all(source, prompts, section, size, counts, name)
                )
                (folder / name).mkdir()
                for key, image in zip(prompts["key"], images, strict=True):
                    image.save(folder / name / f"{key}.png")
                    bar.update()
        write_parquet(folder / "prompts.parquet", prompts)
        write_drawn(folder, drawn)
    names = list(folders)
    num_named = int((prompts["caption"] != "").sum())
    return (
        {"num_prompts": len(prompts), "num_images": len(names) * len(prompts), "num_captions": num_named, **counts},
        fixed_prompts_sheet(layout),
        side_by_side(layout.evaluation, names, prompts[~prompts["fixed"]].head(48)),
    )


def draw_all(
    model: Path, prompts: pd.DataFrame, section: EvaluationImages, size: int, counts: dict[str, int], name: str
) -> Iterator[Image.Image]:
    """Draw a model's picture of each prompt, `size` px per side, in the order of the prompts. counts: receives the
    number of prompts that are too long for the model, under the contestant's `name`.
    """
    from emu_models.checkpoints import load_pipeline
    from emu_models.drawing import draw_encoded, encode_for_drawing

    pipeline = load_pipeline(model)
    pipeline.set_progress_bar_config(disable=True)
    counts[f"num_prompts_cut_{name}"] = sum(bool(describe_cut(pipeline, prompt)) for prompt in prompts["prompt"])
    words, seeds = prompts["prompt"].tolist(), prompts["seed"].tolist()
    encoded = encode_for_drawing(pipeline, words, BATCH)
    asked = section.num_inference_steps, section.guidance_scale, size, section.guidance_rescale
    yield from draw_encoded(pipeline, encoded, seeds, *asked)


def side_by_side(folder: Path, contestants: Sequence[str], prompts: pd.DataFrame) -> Image.Image:
    """Return a contact sheet of each prompt's pictures by all contestants: the prompt under the first, the names under
    the others.
    """
    if not len(prompts):
        return Image.new("RGB", (1, 1))
    drawn = [read_pictures(folder, name, prompts) for name in contestants]
    images = [image for row in zip(*drawn, strict=True) for image in row]
    labels = [text for prompt in prompts["prompt"] for text in (prompt, *contestants[1:])]
    columns = max(1, 8 // len(contestants)) * len(contestants)
    return contact_sheet(np.stack(images), labels, columns=columns, tile=SHEET_TILE)


def fixed_prompts_sheet(layout: Layout) -> Image.Image:
    """Return a contact sheet of the fixed prompts in data/evaluation_images, all contestants side by side."""
    prompts = pd.read_parquet(layout.evaluation / "prompts.parquet")
    return side_by_side(layout.evaluation, list(read_drawn(layout).made_by), prompts[prompts["fixed"]])


def nearest_sheet(
    prompts: pd.DataFrame, images: np.ndarray, nearest: pd.DataFrame, curated_keys: list[str], curated: np.ndarray
) -> Image.Image:
    """Return a contact sheet of the pictures closest to a curated one, each next to that picture, with their distance
    below.
    """
    order = np.argsort(nearest["pixel_distance"].to_numpy(), kind="stable")[:NUM_NEAREST]
    place = {key: i for i, key in enumerate(curated_keys)}
    pairs = [p for i in order for p in (images[i], curated[place[nearest["nearest_pixel_key"].iloc[i]]])]
    away = [format_number(distance, 3) for distance in nearest["pixel_distance"]]
    labels = [text for i in order for text in (prompts["prompt"].iloc[i], f"curated, {away[i]} away")]
    return contact_sheet(np.stack(pairs), labels, columns=8, tile=SHEET_TILE)


def report_automatically(
    layout: Layout, params: Params, judged: Mapping[str, str]
) -> tuple[dict[str, float], Image.Image]:
    """Measure, for real pictures and for each contestant's, how often a judge that filtering did not use recognises the
    subject, how many are near-copies of curated pictures, and the Fréchet distance to the curated set on the judge's
    features. Write the report; return the metrics and a sheet of the candidate's pictures that are closest to a curated
    one.

    The real pictures are those that the judge has not seen. For near-copies they are pictures that were not curated,
    which cannot be copies: their share is the one to compare the contestants' shares with. judged: asset -> md5 of what
    the report is made from.
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
    subjects = known_subjects(prompts, layout.model("faithfulness_judge"))
    named, mask = subjects[subjects != ""].tolist(), (subjects != "").to_numpy()
    ledger = read_ledger(layout.filtered / "ledger")
    real_rows = ledger[ledger["first_failed_gate"].isin(SOUND)].sort_values("key")
    captions = sorted({*real_rows["caption"].dropna(), *named})
    curated = read_manifest(layout.curated)
    size = params.quality_tuned.resolution
    curated_images = read_images(layout.curated, curated["key"].tolist(), size)
    made_by, candidate = candidate_maker(layout, params.comparison), params.comparison[0]
    pictures = {name: read_pictures(layout.evaluation, name, prompts) for name in read_drawn(layout).made_by}

    real = held[held["caption"].isin(named)]
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
            if named:
                naming[who] = measure_naming(judge, images[mask], named, captions, seed)
            distances[who] = frechet_distance(embedded, curated_embeddings)
    wanted = params.automatic_report.wanted
    kinds = measure_wanted(layout, wanted, pictures, params.comparison, size, seed) if wanted else None
    copies = {who: (int(is_near_copy(found, among).sum()), len(found)) for who, found in nearest.items()}
    write_automatic_report(
        layout.report("automatic_report"),
        AutomaticFindings(
            candidate=candidate,
            judge=judge.name,
            judge_error=judge_error,
            naming=naming,
            num_named=len(named),
            nearest={name: nearest[name] for name in pictures},
            copies={who: exact_rate(*counts) for who, counts in copies.items()},
            among=among,
            frechet=distances,
            frechet_features="the judge's image embedding (not FID)",
            wanted=kinds,
        ),
        prompts,
        pictures,
        curated_keys,
        curated_images,
        Run(params.profile, params.toy, judged),
    )
    metrics: dict[str, float] = {"num_prompts": len(prompts), "num_prompts_named": len(named)}
    for who, rates in naming.items():
        metrics[f"named_top_1_{who}"] = rates.top_1.estimate
        metrics[f"named_top_5_{who}"] = rates.top_5.estimate
    for who, (num_near, num) in copies.items():
        metrics[NUM_NEAR + who], metrics[NUM_PICTURES + who] = num_near, num
        metrics[f"near_copy_share_{who}"] = num_near / num
    if kinds:
        metrics |= {f"wanted_share_{who}": share.estimate for who, share in kinds.shares.items()}
        metrics["wanted_difference"], metrics["wanted_difference_low"] = kinds.difference.estimate, kinds.difference.low
        metrics["curated_wanted_precision"] = kinds.precision.estimate
        metrics["curated_wanted_recall"] = kinds.recall.estimate
    for name, distance in distances.items():
        metrics[f"frechet_to_curated_{name}"] = distance
    write_evidence(layout, "automatic_report", metrics, judged, candidate, made_by)
    return metrics, nearest_sheet(prompts, pictures[candidate], nearest[candidate], curated_keys, curated_images)
