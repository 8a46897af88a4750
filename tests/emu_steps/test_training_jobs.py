"""Which raw pictures an autoencoder is trained on, and what is checked in raw rows before that."""

import dataclasses
import hashlib
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emu_dagster.defs.checks import raw_rows_are_whole
from emu_data.cascade import SHARD_MARK
from emu_data.files import write_parquet
from emu_data.ledger import GATES, write_ledger
from emu_data.samples import Sample, make_key
from emu_data.shards import shard_digest, write_shard
from emu_models.alignment import AlignmentJob
from emu_models.alignment_learner import AlignmentConfig
from emu_models.judge_training import JudgeConfig, JudgeJob
from emu_models.latent.jobs import AutoencoderJob, AutoencoderTrainingConfig, DenoiserJob, DenoiserTrainingConfig
from emu_models.training import row_file
from emu_models.training.jobs import LoopConfig
from emu_models.training.order import held_out
from emu_models.training.row_file import open_rows
from emu_steps.layout import Layout
from emu_steps.params import (
    AlignmentModel,
    AutoencoderSection,
    AutoencoderStudy,
    FaithfulnessJudge,
    FirstPretraining,
    Launch,
    QualityTuning,
    Section,
)
from emu_steps.training_jobs import autoencoder_job, judge_job, write_gated_rows, write_training_rows
from tests.profiles import params_of, text_of
from tests.shards import encode

TOP = Path(__file__).parents[2]
NUM_SHARDS, NUM_ROWS = 4, 50
PICTURE = encode(Image.new("RGB", (64, 64)))  # for each row


def rows_of(shard: int) -> pd.DataFrame:
    """Return rows of 64 px pictures, except the last two of a shard: one too small, one that never arrived."""
    keys = [make_key(shard, i) for i in range(NUM_ROWS)]
    table = pd.DataFrame({"key": keys, "caption": "a square", "status": "success", "width": 64, "height": 64})
    table.loc[NUM_ROWS - 2, "width"] = 16
    table.loc[NUM_ROWS - 1, "status"] = "failed_to_download"
    return table


def write_corpus(root: Path, tables: list[pd.DataFrame]) -> Layout:
    layout = Layout(root)
    layout.raw.mkdir(parents=True)
    for shard, table in enumerate(tables):
        arrived = table.loc[table["status"] == "success", "key"]
        write_shard(layout.raw, shard, [Sample(key, PICTURE, "a square") for key in arrived], table)
    return layout


def choose(layout: Layout, max_images: int) -> pd.DataFrame:
    section = params_of("smoke").autoencoder_study
    return pd.read_parquet(write_training_rows(layout, section.resolution, max_images))


def test_the_sample_is_the_same_in_any_order_of_shards(tmp_path: Path) -> None:
    tables = [rows_of(shard) for shard in range(NUM_SHARDS)]
    chosen = choose(write_corpus(tmp_path / "one", tables), 60)
    turned = choose(write_corpus(tmp_path / "other", tables[::-1]), 60)
    pd.testing.assert_frame_equal(chosen.drop(columns="shard"), turned.drop(columns="shard"))
    assert len(set(chosen["key"])) == 60
    assert set(chosen["key"]) <= set(choose(Layout(tmp_path / "one"), 80)["key"])
    is_held_out = held_out(chosen["key"].tolist(), 0.2, 1)
    assert 0 < is_held_out.sum() < 30  # the sample does not depend on the hash by which rows are held out


def test_a_pretraining_takes_the_ledgers_digests_and_reads_no_picture_at_its_start(tmp_path, monkeypatch) -> None:
    """Of the shard that was measured as it is; those of the other one are hashed."""
    layout = write_corpus(tmp_path, [rows_of(shard) for shard in range(2)])
    for shard in ("00000", "00001"):
        rows = rows_of(int(shard)).assign(shard=shard, stored_sha256=hashlib.sha256(PICTURE).hexdigest(), unmeasured="")
        rows["first_failed_gate"] = ["", *["quota", "duplicate", "text_area"] * 16, "readable"]
        mark = shard_digest(layout.raw / f"{shard}.parquet") if shard == "00000" else "of other bytes"
        write_ledger(layout.filtered / "ledger", rows.astype("string"), {SHARD_MARK: mark})
    read: list[str] = []
    reader = row_file.read_samples
    monkeypatch.setattr(
        row_file, "read_samples", lambda path, on_error: read.append(path.stem) or reader(path, on_error)
    )
    for with_sizes, height in ((False, 0), (True, 64)):
        table = write_gated_rows(layout, "pretrained_low", ["readable", "duplicate"], with_sizes)
        file = open_rows(layout.raw, table, tmp_path / f"cache {with_sizes}")
        keys, digests, heights, shards = file.read(np.arange(len(file)), "key", "digest", "height", "shard")
        assert len(keys) == 2 * (1 + 32) and keys == sorted(keys)
        assert set(digests) == {hashlib.sha256(PICTURE).digest()}
        assert set(zip(shards, heights, strict=True)) == {(0, height), (1, 64)}
    assert read == ["00001", "00001"]


def test_a_pretraining_may_ask_for_smaller_pictures_than_the_curated_set(tmp_path) -> None:
    """What only `size` left out is sound; each pretraining says how large its pictures must be."""
    layout, rows = write_corpus(tmp_path, [rows_of(0)]), rows_of(0)
    rows = rows.assign(shard="00000", unmeasured="", first_failed_gate="size").astype("string")
    rows["min_side"] = np.arange(len(rows)) + 200
    write_ledger(layout.filtered / "ledger", rows)
    for min_side, expected in ((None, len(rows)), (220, len(rows) - 20), (10_000, 0)):
        table = write_gated_rows(layout, "pretrained_low", ["readable", "geometry"], False, min_side)
        assert len(pd.read_parquet(table)) == expected


def test_an_autoencoders_rows_are_hashed_when_they_are_chosen(tmp_path, monkeypatch) -> None:
    layout = write_corpus(tmp_path, [rows_of(0)])
    section = params_of("smoke").autoencoder_study
    table = write_training_rows(layout, section.resolution, section.max_images)
    with monkeypatch.context() as patch:
        patch.setattr(row_file, "read_samples", None)
        taken = open_rows(layout.raw, table, tmp_path / "cache")
    pd.read_parquet(table)[["key", "caption"]].to_parquet(table)
    assert taken.hashes == open_rows(layout.raw, table, tmp_path / "other").hashes


def test_pictures_that_are_too_small_or_did_not_arrive_are_not_trained_on(tmp_path: Path) -> None:
    chosen = choose(write_corpus(tmp_path, [rows_of(shard) for shard in range(NUM_SHARDS)]), 10_000)
    assert len(chosen) == NUM_SHARDS * (NUM_ROWS - 2)


def test_the_judge_learns_nothing_that_a_gate_rejected(tmp_path: Path) -> None:
    """Not the captions that the alignment gate threw out, nor copies, which would straddle what it learns and what it
    is tested on; what only its size or a quota turned away is as good as what was kept."""
    layout, gates = Layout(tmp_path), ["", "quota", *GATES]
    ledger = pd.DataFrame({"key": [f"{i:03d}" for i in range(len(gates))], "first_failed_gate": gates})
    ledger["caption"] = "caption of " + ledger["key"]
    write_parquet(layout.filtered / "ledger" / "00000.parquet", ledger.iloc[:5])
    write_parquet(layout.filtered / "ledger" / "00001.parquet", ledger.iloc[5:])
    params = params_of("smoke")
    section = params.faithfulness_judge
    job = judge_job(layout, section, params.launch)
    passed = ledger["first_failed_gate"].isin(["", "size", "quota"])
    pd.testing.assert_frame_equal(
        pd.read_parquet(job.rows), ledger.loc[passed, ["key", "caption"]].reset_index(drop=True), check_dtype=False
    )
    assert (job.held_share, job.training.seed, job.resolution) == (section.held_share, section.seed, section.image_size)


@pytest.mark.parametrize(
    ("section", "parts", "taken_by_steps"),
    [
        (FirstPretraining, (DenoiserJob, DenoiserTrainingConfig), {"gates", "min_side"}),  # they choose the rows
        (
            QualityTuning,
            (DenoiserJob, DenoiserTrainingConfig),
            {"captions", "lora", "whole_set"},
        ),  # the rows, the job's adapters
        (AutoencoderSection, (AutoencoderJob, AutoencoderTrainingConfig), {"max_images", "variant"}),
        (AlignmentModel, (AlignmentJob, AlignmentConfig), {"image_size"}),  # the job's resolution
        (FaithfulnessJudge, (JudgeJob, JudgeConfig), {"image_size"}),
        (
            AutoencoderStudy,
            (AutoencoderJob, AutoencoderTrainingConfig),
            {"max_images", "inception", "variants", "fold", "widths", "encoder_blocks", "decoder_blocks"}
            | {"linear_shortcut"},
        ),
    ],
)
def test_every_setting_of_params_reaches_the_training_that_has_a_field_for_it(
    section: type[Section], parts: tuple[type, ...], taken_by_steps: set[str]
) -> None:
    """A setting is written once in params and once in the learner's config; one that no training uses fails here."""
    fields = {field.name for part in (*parts, LoopConfig) for field in dataclasses.fields(part)}
    assert set(section.model_fields) - fields == taken_by_steps


def test_how_an_autoencoder_is_computed_reaches_its_training(tmp_path: Path) -> None:
    given = {"trainings": {"autoencoder": {"micro_batch_size": 3}}}
    launch, layout, params = Launch.model_validate(given), Layout(tmp_path), params_of("smoke")
    found = {
        asset: autoencoder_job(layout, asset, asset, tmp_path, tmp_path, section, {}, None, launch).training
        for asset, section in {"autoencoder_study": params.autoencoder_study, "autoencoder": params.autoencoder}.items()
    }
    assert {asset: training.micro_batch_size for asset, training in found.items()} == {
        "autoencoder_study": None,
        "autoencoder": 3,
    }


@pytest.mark.parametrize("keys_twice", [0, 3])
def test_a_key_that_occurs_twice_stops_the_graph(project: Path, keys_twice: int) -> None:
    (project / "params.yaml").write_text(text_of("smoke"))
    tables = [rows_of(shard) for shard in range(2)]
    tables[1].loc[: keys_twice - 1, "key"] = tables[0]["key"]
    write_corpus(project, tables)
    found = raw_rows_are_whole()
    assert isinstance(found, dg.AssetCheckResult)
    assert found.passed == (keys_twice == 0)
    assert found.metadata["num_rows"].value == 2 * NUM_ROWS
    assert found.metadata["num_keys_twice"].value == keys_twice
    assert found.metadata["num_arrived"].value == 2 * (NUM_ROWS - 1)
