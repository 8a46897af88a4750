"""Which raw pictures an autoencoder is trained on, and what is checked in raw rows before that."""

import dataclasses
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from PIL import Image

from emu_dagster.defs.checks import raw_rows_are_whole
from emu_data.files import write_parquet
from emu_data.ledger import GATES
from emu_data.samples import Sample, make_key
from emu_data.shards import write_shard
from emu_models.alignment import AlignmentJob
from emu_models.alignment_learner import AlignmentConfig
from emu_models.judge_training import JudgeConfig, JudgeJob
from emu_models.latent.jobs import AutoencoderJob, AutoencoderTrainingConfig, DenoiserJob, DenoiserTrainingConfig
from emu_models.training.jobs import LoopConfig
from emu_models.training.order import held_out
from emu_steps.layout import Layout
from emu_steps.params import (
    AlignmentModel,
    AutoencoderSection,
    AutoencoderStudy,
    FaithfulnessJudge,
    FirstPretraining,
    QualityTuning,
    Section,
)
from emu_steps.training_jobs import judge_job, write_training_rows
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
    return pd.read_parquet(write_training_rows(layout, section.model_copy(update={"max_images": max_images})))


def test_the_sample_is_the_same_in_any_order_of_shards(tmp_path: Path) -> None:
    tables = [rows_of(shard) for shard in range(NUM_SHARDS)]
    chosen = choose(write_corpus(tmp_path / "one", tables), 60)
    turned = choose(write_corpus(tmp_path / "other", tables[::-1]), 60)
    pd.testing.assert_frame_equal(chosen.drop(columns="shard"), turned.drop(columns="shard"))
    assert len(set(chosen["key"])) == 60
    assert set(chosen["key"]) <= set(choose(Layout(tmp_path / "one"), 80)["key"])
    is_held_out = held_out(chosen["key"].tolist(), 0.2, 1)
    assert 0 < is_held_out.sum() < 30  # the sample does not depend on the hash by which rows are held out


def test_pictures_that_are_too_small_or_did_not_arrive_are_not_trained_on(tmp_path: Path) -> None:
    chosen = choose(write_corpus(tmp_path, [rows_of(shard) for shard in range(NUM_SHARDS)]), 10_000)
    assert len(chosen) == NUM_SHARDS * (NUM_ROWS - 2)


def test_the_judge_learns_nothing_that_a_gate_rejected(tmp_path: Path) -> None:
    """Not the captions that the alignment gate threw out, nor copies, which would straddle what it learns and what it
    is tested on; what only a quota turned away is as good as what was kept."""
    layout, gates = Layout(tmp_path), ["", "quota", *GATES]
    ledger = pd.DataFrame({"key": [f"{i:03d}" for i in range(len(gates))], "first_failed_gate": gates})
    ledger["caption"] = "caption of " + ledger["key"]
    write_parquet(layout.filtered / "ledger" / "00000.parquet", ledger.iloc[:5])
    write_parquet(layout.filtered / "ledger" / "00001.parquet", ledger.iloc[5:])
    section = params_of("smoke").faithfulness_judge
    job = judge_job(layout, section)
    passed = ledger["first_failed_gate"].isin(["", "quota"])
    pd.testing.assert_frame_equal(
        pd.read_parquet(job.rows), ledger.loc[passed, ["key", "caption"]].reset_index(drop=True), check_dtype=False
    )
    assert (job.held_share, job.training.seed, job.resolution) == (section.held_share, section.seed, section.image_size)


@pytest.mark.parametrize(
    ("section", "parts", "taken_by_steps"),
    [
        (FirstPretraining, (DenoiserJob, DenoiserTrainingConfig), {"gates"}),  # they choose the rows
        (QualityTuning, (DenoiserJob, DenoiserTrainingConfig), {"captions", "lora"}),  # the rows, the job's adapters
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
