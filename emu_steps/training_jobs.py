"""Jobs for the training child (emu_models/training/jobs.py), made from sections of params.yaml.

A knob flows by its name: an entry of a section is taken by whichever part of the job has a field that is called so.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_data.files import atomic_dir, restore_dir
from emu_steps.layout import Layout
from emu_steps.params import (
    AlignmentModel,
    AutoencoderSection,
    AutoencoderStudy,
    AutoencoderTraining,
    FaithfulnessJudge,
    FirstPretraining,
    Params,
    Pretraining,
    QualityTuning,
    Variant,
)

if TYPE_CHECKING:
    from emu_models.alignment import AlignmentJob
    from emu_models.judge_training import JudgeJob
    from emu_models.latent.jobs import AutoencoderJob, DenoiserJob

MAX_ASPECT = 2.0  # long side / short side of a picture that the autoencoder trains on; chosen here
# SQL over a ledger: the rows that failed none of $gates. Signals are named as their gates; what a gate was not asked
# about was not needed: no stage keeps such a row.
PASSED_GATES = """NOT list_contains($gates, first_failed_gate)
    AND NOT list_has_any(string_split(coalesce(unmeasured, ''), ','), $gates)"""
CHECKPOINT_SECONDS = 20.0  # wall time between two saved states, about what a crash may cost; chosen here


def training_folder(layout: Layout, asset: str, identity: str = "") -> Path:
    """The folder of a training of an asset, or of all of them: states, logs and results (training/identity.py)."""
    return layout.states / asset / identity


def publish(layout: Layout, asset: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Puts the finished models that the training child told of in the place of data/models/ASSET, all or none.

    Copies, not links: somebody may edit a published file in place, and DVC makes what it records read-only; neither may
    reach the one that is kept. A model that stands there and that no training here has made (of an earlier version, or
    brought by DVC) is not removed but moved to data/states/ASSET/replaced-N.
    """
    target = layout.model(asset)
    restore_dir(target)
    if target.is_dir() and not _is_kept(layout, asset, target):
        states = training_folder(layout, asset)
        states.mkdir(parents=True, exist_ok=True)
        number = next(n for n in itertools.count(1) if not (states / f"replaced-{n}").exists())
        os.replace(target, states / f"replaced-{number}")
    with atomic_dir(target) as partial:
        for result in results:
            place = partial / Path(result["out"]).relative_to(target)
            shutil.copytree(Path(result["folder"]) / "result", place, dirs_exist_ok=True)


def _is_kept(layout: Layout, asset: str, target: Path) -> bool:
    names = published(target)
    return bool(names) and all((training_folder(layout, asset, name) / "result").is_dir() for name in names)


def published(target: Path) -> list[str]:
    """The identities of the trainings that a published folder was copied from; none where it does not say."""
    metas = [meta for folder in (target, *target.glob("*/")) if (meta := folder / "meta.json").is_file()]
    return [name for meta in metas if (name := json.loads(meta.read_text()).get("identity"))]


def alignment_job(layout: Layout, section: AlignmentModel) -> "AlignmentJob":
    """A job that trains the alignment models on all pictures that can be read; copies share a fold."""
    import pandas as pd

    from emu_data.files import write_parquet
    from emu_data.near_twins import near_duplicate_groups
    from emu_data.records import DecodeError, decode_rgb
    from emu_data.shards import list_shards, read_samples
    from emu_data.signals.phash import perceptual_hash, thumbnail
    from emu_models.alignment import AlignmentJob
    from emu_models.training.jobs import make

    found = []
    for tar in list_shards(layout.raw):
        for sample in read_samples(tar, on_error=lambda error: None):  # the ledger says why it is left out
            try:
                image = decode_rgb(sample.image)
            except DecodeError:
                continue
            digest = hashlib.sha256(sample.image).hexdigest()
            found.append((sample.key, sample.caption, digest, perceptual_hash(image), thumbnail(image)))
    table = pd.DataFrame(found, columns=["key", "caption", "sha256", "phash", "thumbnail"]).sort_values(
        "key", ignore_index=True
    )
    table["group"] = near_duplicate_groups(table)
    path = layout.cache / "rows" / "alignment_model.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(path, table[["key", "caption", "group"]])
    return make(AlignmentJob, {**_places(layout, "alignment_model", layout.raw, path), "config": section.model_dump()})


def judge_job(layout: Layout, section: FaithfulnessJudge) -> "JudgeJob":
    """A job that makes the judge from the rows that passed every gate but the quota.

    Of near-twins only the one that was kept: its copies would straddle what is learnt and what is held out.
    """
    from emu_data.ledger import open_ledger
    from emu_models.judge_training import JudgeJob
    from emu_models.training.jobs import make

    passed = "SELECT key, caption FROM ledger WHERE first_failed_gate IN ('', 'quota') ORDER BY key"
    with open_ledger(layout.filtered / "ledger") as con:
        rows = _write_rows(layout, "faithfulness_judge", con.execute(passed).df())
    places = _places(layout, "faithfulness_judge", layout.raw, rows)
    return make(JudgeJob, {**places, "root": layout.root, "config": section.model_dump()})


def write_training_rows(layout: Layout, section: AutoencoderTraining) -> Path:
    """A parquet (key, caption) of raw pictures that can be read and are as large as they are to be trained on: all, or
    the `max_images` whose keys hash lowest. No more than these and a shard's rows are in memory."""
    import pandas as pd

    from emu_data.shards import iter_rows

    resolution, chosen = section.resolution, []
    for rows in iter_rows(layout.raw, ["key", "caption", "status", "width", "height"]):
        sides = rows[["width", "height"]]
        usable = (rows["status"] == "success") & (sides.min(axis=1) >= resolution)
        usable &= sides.max(axis=1) <= MAX_ASPECT * sides.min(axis=1)
        found = rows.loc[usable, ["key", "caption"]]
        # not the hash by which training holds rows out (emu_models.training.order), which would hold out all of these
        found = found.assign(order=pd.util.hash_array(found["key"].to_numpy(object)))
        chosen = [pd.concat([*chosen, found]).nsmallest(section.max_images, "order")]
    return _write_rows(layout, f"autoencoder_{resolution}_{section.max_images}", chosen[0].sort_values("key"))


def write_gated_rows(layout: Layout, name: str, gates: list[str]) -> Path:
    """A parquet (key, caption) of the raw pictures that failed none of `gates`. Those that only a quota turned away
    are pretrained on: the paper, too, pretrains on far more than the 200 K."""
    from emu_data.ledger import GATES, open_ledger

    unknown = set(gates) - set(GATES)
    if unknown:
        raise ValueError(f"{name}.gates names {sorted(unknown)}; the gates are {', '.join(GATES)}")
    passed = f"SELECT key, caption FROM ledger WHERE {PASSED_GATES} ORDER BY key"
    with open_ledger(layout.filtered / "ledger") as con:
        return _write_rows(layout, name, con.execute(passed, {"gates": gates}).df())


def _write_rows(layout: Layout, name: str, rows: Any) -> Path:
    from emu_data.files import write_parquet

    path = layout.cache / "rows" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(path, rows[["key", "caption"]].reset_index(drop=True))
    return path


def autoencoder_network(study: AutoencoderStudy, variant: Variant) -> dict[str, Any]:
    """Arguments of emu_models.latent.autoencoder.network.Autoencoder."""
    shared = ("fold", "widths", "encoder_blocks", "decoder_blocks", "linear_shortcut")
    return {**variant.model_dump(), **{name: getattr(study, name) for name in shared}}


def autoencoder_job(
    layout: Layout,
    asset: str,
    name: str,
    rows: Path,
    out: Path,
    section: AutoencoderStudy | AutoencoderSection,
    network: dict[str, Any] | None,
    start_from: Path | None,
) -> "AutoencoderJob":
    """A job that trains one autoencoder on raw pictures: from `network`, or on from the folder `start_from`."""
    from emu_models.latent.jobs import AutoencoderJob
    from emu_models.training.jobs import make

    knobs = section.model_dump()
    if section.losses.perceptual.kind == "encoder" and not section.losses.perceptual.path:
        # not fold_1, on whose features the study's distances are measured
        knobs["losses"]["perceptual"]["path"] = str(layout.model("alignment_model") / "fold_0")
    places = {**_places(layout, asset, layout.raw, rows), "name": name, "out": out}
    return make(AutoencoderJob, {**_at_every_level(knobs), **places, "network": network, "start_from": start_from})


def denoiser_job(
    layout: Layout,
    params: Params,
    name: str,
    shards: Path,
    rows: Path,
    section: Pretraining | QualityTuning,
    start_from: Path | None,
) -> "DenoiserJob":
    """A job that trains a denoiser: a new one over the autoencoder, or on from the pipeline in `start_from`."""
    from emu_models.latent.jobs import DenoiserJob
    from emu_models.training.jobs import make

    knobs = {**section.model_dump(), **params.launch.of(name).model_dump()}
    others = {
        "autoencoder": layout.model("autoencoder") if isinstance(section, FirstPretraining) else None,
        "start_from": start_from,
        "num_text_tokens": params.pretrained_low.num_text_tokens,
        "prompts": params.evaluation_images.fixed_prompts,
        "guidance_scale": params.evaluation_images.guidance_scale,
        "adapters": knobs.pop("lora", None),
    }
    return make(DenoiserJob, {**_at_every_level(knobs), **_places(layout, name, shards, rows), **others})


def _at_every_level(knobs: dict[str, Any]) -> dict[str, Any]:
    """The entries of a section for a job, its loop and its learner: each takes those that it has a field for."""
    return {**knobs, "loop": {**knobs, "checkpoint_seconds": CHECKPOINT_SECONDS}, "training": knobs}


def _places(layout: Layout, asset: str, shards: Path, rows: Path) -> dict[str, Any]:
    return {
        "name": asset,
        "shards": shards,
        "rows": rows,
        "out": layout.model(asset),
        "states": training_folder(layout, asset),
        "cache": layout.cache / "encoded",
    }
