"""Makes jobs for the training child (emu_models/training/jobs.py) from sections of params.yaml.

Settings are passed by name: an entry of a section goes to each part of the job that has a field of that name.
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
from emu_data.ledger import SOUND
from emu_steps.layout import Layout
from emu_steps.params import (
    AlignmentModel,
    AlignmentTraining,
    AutoencoderSection,
    AutoencoderStudy,
    FaithfulnessJudge,
    FirstPretraining,
    Launch,
    Params,
    Pretraining,
    QualityTuning,
    Variant,
)

if TYPE_CHECKING:
    import pandas as pd

    from emu_models.alignment import AlignmentJob
    from emu_models.judge_training import JudgeJob
    from emu_models.latent.jobs import AutoencoderJob, DenoiserJob

MAX_ASPECT = 2.0  # long side / short side of a picture that the autoencoder trains on; chosen here
_PASSED_GATES = """first_failed_gate <> 'readable' AND NOT list_contains($gates, first_failed_gate)
    AND NOT list_has_any(string_split(coalesce(unmeasured, ''), ','), $gates)"""
ROW_COLUMNS = ("key", "caption", "status", "width", "height")  # of raw rows, for usable_rows
PASSED_ALL = f"first_failed_gate IN {SOUND}"  # every gate that says something about a picture
SAVING = {"checkpoint_minutes", "keep_states", "keep_every"}  # settings of launch that each loop takes


def passed_sql(gates: Sequence[str], min_side: int | None) -> tuple[str, dict[str, Any]]:
    """Return SQL over a ledger, with its parameters: the rows that can be read, failed none of `gates` and, with
    `min_side`, have a shorter side of so many px.

    Signals have their gates' names; if a row was not measured by one of them, no training needed it, and it is left
    out.
    """
    size = "" if min_side is None else f" AND min_side >= {min_side}"
    return _PASSED_GATES + size, {"gates": [*gates]}


def training_folder(layout: Layout, asset: str, identity: str = "") -> Path:
    """Return the folder of one training of an asset or, without `identity`, of all its trainings, with states, logs and
    results (training/identity.py).
    """
    return layout.states / asset / identity


def publish(layout: Layout, asset: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Replace data/models/ASSET by the finished models that the training child reported, all or none. Without results
    the folder is empty.

    They are copied, not linked: somebody may edit a published file in place, and DVC makes recorded files read-only;
    neither may affect the result in data/states. If the present model does not come from a training here (an older
    version made it, or DVC checked it out), it is not removed but moved to data/states/ASSET/replaced-N.
    """
    target = layout.model(asset)
    restore_dir(target)
    if target.is_dir() and any(target.iterdir()) and not _is_kept(layout, asset, target):
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
    """Return the identities of the trainings from which a published folder was copied; empty if it does not say."""
    metas = [meta for folder in (target, *target.glob("*/")) if (meta := folder / "meta.json").is_file()]
    return [name for meta in metas if (name := json.loads(meta.read_text()).get("identity"))]


def alignment_job(layout: Layout, section: AlignmentModel, launch: Launch) -> "AlignmentJob":
    """Make a job that trains the alignment models on all pictures that can be read; near-twins share a fold.

    Measuring needs these models, so there is no ledger yet that says which pictures can be read.
    """
    import pandas as pd

    from emu_data.files import write_parquet
    from emu_data.guarded import look_guarded
    from emu_data.near_twins import near_duplicate_groups
    from emu_data.shards import iter_samples
    from emu_data.signals.looks import look_at
    from emu_models.alignment import AlignmentJob
    from emu_models.training.jobs import make

    found = [
        {"key": sample.key, "caption": sample.caption, **looks}
        for sample, looks in look_guarded(iter_samples(layout.raw), look_at)
    ]
    table = pd.DataFrame(found, columns=["key", "caption", "stored_sha256", "looks"])
    table = table.rename(columns={"stored_sha256": "sha256"}).sort_values("key", ignore_index=True)
    table["group"] = near_duplicate_groups(table)
    path = layout.cache / "rows" / "alignment_model.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(path, table[["key", "caption", "group"]])
    places = places_of(layout, "alignment_model", layout.raw, path)
    return make(AlignmentJob, {**_alignment_settings(section, launch), **places})


def judge_job(layout: Layout, section: FaithfulnessJudge, launch: Launch) -> "JudgeJob":
    """Make a job that trains the judge on the rows that passed every gate except the quota.

    Of near-twins, only the one that was kept is used: copies could be both in the training rows and in the held-out
    rows.
    """
    from emu_data.ledger import open_ledger
    from emu_models.judge_training import JudgeJob
    from emu_models.training.jobs import make

    passed = f"SELECT key, caption FROM ledger WHERE {PASSED_ALL} ORDER BY key"
    with open_ledger(layout.filtered / "ledger") as con:
        rows = write_rows(layout, "faithfulness_judge", con.execute(passed).df())
    places = places_of(layout, "faithfulness_judge", layout.raw, rows)
    return make(JudgeJob, {**_alignment_settings(section, launch), **places, "root": layout.root})


def _alignment_settings(section: AlignmentTraining, launch: Launch) -> dict[str, Any]:
    return {**at_every_level(section.model_dump(), launch), "resolution": section.image_size}


def write_training_rows(layout: Layout, resolution: int, max_images: int) -> Path:
    """Write a parquet of raw pictures that are large enough to train on (key, caption, and what reading them has shown;
    row_file.open_rows): all, or the `max_images` with the lowest hashes of their keys, without those that cannot be
    decoded. resolution: px that the shorter side must have. Only these rows and one shard's are in memory at a
    time."""
    import pandas as pd

    from emu_data.guarded import measure_guarded
    from emu_data.shards import iter_rows, iter_samples, shard_digest

    chosen: list[pd.DataFrame] = []
    for rows in iter_rows(layout.raw, ROW_COLUMNS):
        found = usable_rows(rows, resolution)[["key", "caption", "shard"]]
        # Another hash than the one by which trainings choose held-out rows (emu_models.training.order), which would
        # hold out all of these.
        found = found.assign(order=pd.util.hash_array(found["key"].to_numpy(object)))
        chosen = [pd.concat([*chosen, found]).nsmallest(max_images, "order")]
    rows = chosen[0].sort_values("key")
    marks = {shard: shard_digest(layout.raw / f"{shard}.parquet") for shard in sorted(rows["shard"].unique())}
    measured = measure_guarded(iter_samples(layout.raw, rows["key"].tolist()))
    shown = pd.DataFrame(
        [(sample.key, hashlib.sha256(sample.image).hexdigest(), *size) for sample, size in measured],
        columns=["key", "digest", "width", "height"],
    )
    readable = usable_rows(shown.assign(status="success"), resolution).drop(columns="status")  # by their true sizes
    found = rows.merge(readable, on="key", validate="one_to_one")
    return write_rows(layout, f"autoencoder_{resolution}_{max_images}", found, marks)


def usable_rows(rows: "pd.DataFrame", resolution: int) -> "pd.DataFrame":
    """Return the rows (columns status, width, height and any others) whose pictures exist and are large enough for an
    autoencoder to learn from at `resolution` px, according to these sizes; rows without a size are kept."""
    sides = rows[["width", "height"]].astype("Float64")
    is_unknown = sides.isna().any(axis=1)
    fits = (sides.min(axis=1) >= resolution) & (sides.max(axis=1) <= MAX_ASPECT * sides.min(axis=1))
    return rows[(rows["status"] == "success") & (is_unknown | fits.fillna(False))]


def write_gated_rows(
    layout: Layout, name: str, gates: list[str], with_sizes: bool = False, min_side: int | None = None
) -> Path:
    """Write a parquet of the raw pictures that failed none of `gates` and are large enough (`passed_sql`): key,
    caption, shard, and the digest that the ledger has (row_file.open_rows). Pictures that only a quota dropped are used
    too: the paper also pretrains on far more than the 200 K.

    with_sizes: also width and height (px), as the raw parquets have them; pictures of shards in which some have none
    are looked at by the training. DuckDB writes the file; memory does not grow with the rows. Raises ValueError if
    there is no such gate.
    """
    from emu_data.files import atomic_file
    from emu_data.ledger import GATES, ledger_columns, open_ledger
    from emu_models.training.jobs import SHARD_MARKS

    unknown = set(gates) - set(GATES)
    if unknown:
        raise ValueError(f"{name}.gates names {sorted(unknown)}; the gates are {', '.join(GATES)}")
    ledger, path = layout.filtered / "ledger", layout.cache / "rows" / f"{name}.parquet"
    with open_ledger(ledger) as con, atomic_file(path) as partial:
        digest = "stored_sha256" if "stored_sha256" in ledger_columns(con) else "NULL::VARCHAR"
        columns = f"key, caption, shard, {digest} AS digest"
        where, given = passed_sql(gates, min_side)
        con.execute(f"CREATE TEMP TABLE passed AS SELECT {columns} FROM ledger WHERE {where}", given)
        if with_sizes:
            _add_sizes(con, layout.raw)
        unknown = "digest IS NULL" + (" OR width IS NULL OR height IS NULL" if with_sizes else "")
        found = con.execute(f"SELECT shard, bool_or({unknown}) FROM passed GROUP BY shard ORDER BY shard").fetchall()
        marks = {str(shard): _mark_of(ledger, str(shard)) for shard, is_unknown in found if not is_unknown}
        schema = json.dumps({shard: mark for shard, mark in marks.items() if mark}).replace("'", "''")
        target = str(partial).replace("'", "''")
        con.execute(
            f"COPY (SELECT * FROM passed ORDER BY key) TO '{target}' "
            f"(FORMAT parquet, COMPRESSION zstd, KV_METADATA {{'{SHARD_MARKS}': '{schema}'}})"
        )
    return path


def _mark_of(ledger: Path, shard: str) -> str | None:
    """Return the digest of the shard that a ledger's rows were measured on, None if the ledger does not have it."""
    from emu_data.cascade import SHARD_MARK
    from emu_data.ledger import read_marks

    return read_marks(ledger / f"{shard}.parquet").get(SHARD_MARK)


def _add_sizes(con: Any, raw: Path) -> None:
    """Add width and height to the table `passed`, null where the raw parquets have none."""
    files = str(raw / "*.parquet").replace("'", "''")
    source = f"read_parquet('{files}', union_by_name = true)"
    present = {str(row[0]) for row in con.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    sizes = ", ".join(
        f"{f'nullif(greatest(r.{side}, 0), 0)' if side in present else 'NULL'}::INTEGER AS {side}"
        for side in ("width", "height")
    )
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE passed AS SELECT p.*, {sizes} FROM passed p LEFT JOIN {source} r USING (key)"
    )


def write_curated_rows(layout: Layout, captions: str, name: str = "quality_tuned") -> Path:
    """Write a parquet (key, caption) of the curated set. captions: see captioning.pick_captions. name: of the file."""
    from emu_data.shards import read_manifest
    from emu_steps.captioning import pick_captions

    return write_rows(layout, name, pick_captions(read_manifest(layout.curated), captions))


def write_rows(layout: Layout, name: str, rows: Any, marks: Mapping[str, str] | None = None) -> Path:
    """Write a parquet of rows. marks: shard -> its digest, if the rows have digests, widths and heights."""
    from emu_data.files import write_parquet
    from emu_models.training.jobs import SHARD_MARKS

    path = layout.cache / "rows" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["key", "caption", *(("shard", "digest", "width", "height") if marks else ())]
    schema = {SHARD_MARKS: json.dumps(marks, sort_keys=True)} if marks else None
    write_parquet(path, rows[columns].reset_index(drop=True), schema)
    return path


def autoencoder_network(study: AutoencoderStudy, variant: Variant) -> dict[str, Any]:
    """Return the arguments of emu_models.latent.autoencoder.network.Autoencoder for a variant."""
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
    launch: Launch,
) -> "AutoencoderJob":
    """Make a job that trains one autoencoder on raw pictures: a new `network`, or the one in the
    folder `start_from`.
    """
    from emu_models.latent.jobs import AutoencoderJob
    from emu_models.training.jobs import make

    settings: dict[str, Any] = {**section.model_dump(), "micro_batch_size": launch.of(asset).micro_batch_size}
    if path := section.losses.perceptual.path:
        settings["losses"]["perceptual"]["path"] = str(layout.root / path)
    elif section.losses.perceptual.kind == "encoder":
        # not fold_1, whose features measure the study's distances
        settings["losses"]["perceptual"]["path"] = str(layout.model("alignment_model") / "fold_0")
    places = {**places_of(layout, asset, layout.raw, rows), "name": name, "out": out}
    given = {**at_every_level(settings, launch), **places}
    return make(AutoencoderJob, {**given, "network": network, "start_from": start_from})


def denoiser_job(
    layout: Layout,
    params: Params,
    name: str,
    shards: Path,
    rows: Path,
    section: Pretraining | QualityTuning,
    start_from: Path | None,
) -> "DenoiserJob":
    """Make a job that trains a denoiser: a new one on the autoencoder's latents, or that of the pipeline in the folder
    `start_from`.
    """
    from emu_models.latent.jobs import DenoiserJob
    from emu_models.training.jobs import make

    settings = {**section.model_dump(), **params.launch.of(name).model_dump()}
    if isinstance(section, FirstPretraining):
        settings["text_encoder"] = text_encoders_of(layout, section)
    others = {
        "autoencoder": layout.model("autoencoder") if isinstance(section, FirstPretraining) else None,
        "start_from": start_from,
        "num_text_tokens": params.pretrained_low.num_text_tokens,
        "prompts": params.evaluation_images.fixed_prompts,
        "guidance_scale": params.evaluation_images.guidance_scale,
        "adapters": settings.pop("lora", None),
    }
    given = {**at_every_level(settings, params.launch), **places_of(layout, name, shards, rows)}
    return make(DenoiserJob, {**given, **others})


def text_encoders_of(layout: Layout, section: FirstPretraining) -> list[str] | None:
    """Return the text encoders that params name, those in the project by their paths; None for the packaged one."""
    if section.text_encoder is None:
        return None
    names = [section.text_encoder] if isinstance(section.text_encoder, str) else section.text_encoder
    return [str(f) if (f := layout.root / name).is_dir() else name for name in names]


def at_every_level(settings: dict[str, Any], launch: Launch) -> dict[str, Any]:
    """Offer the entries of a section to a job, its loop and its learner: each takes those for which it has a field."""
    return {**settings, "loop": {**settings, **launch.model_dump(include=SAVING)}, "training": settings}


def places_of(layout: Layout, asset: str, shards: Path, rows: Path) -> dict[str, Any]:
    """Return where a training of an asset reads and writes, by the names of a job's fields."""
    return {
        "name": asset,
        "shards": shards,
        "rows": rows,
        "out": layout.model(asset),
        "states": training_folder(layout, asset),
        "cache": layout.cache / "encoded",
    }
