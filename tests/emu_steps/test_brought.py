"""Checkpoints that params.yaml names are examined before anything is made, by `emu doctor` and `emu materialize`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from emu_dagster.commands import doctor
from emu_dagster.commands.driver import FOR_PEOPLE, refuse_unfit
from emu_dagster.declarations.loading import load_declarations
from emu_data.addresses import Store
from emu_data.sources.table import register_table
from tests.checkpoints import make_checkpoint
from tests.profiles import text_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint("sd1", tmp_path_factory.mktemp("checkpoint") / "sd")


def bring(project: Path, checkpoint: Path, **contestants: str) -> Path:
    """Make a project that tunes a copy of a checkpoint."""
    load_declarations()
    params: dict[str, Any] = yaml.safe_load(text_of("smoke"))
    params["quality_tuned"]["start_from"] = "data/brought/sd"
    if contestants:
        params["evaluation_images"]["contestants"] = {"tuned": "data/models/quality_tuned", **contestants}
        params["comparison"] = ["tuned", next(iter(contestants))]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    return Path(shutil.copytree(checkpoint, project / "data" / "brought" / "sd"))


def test_a_sound_checkpoint_is_named_and_lets_everything_be_made(project, checkpoint):
    bring(project, checkpoint)
    assert doctor._brought() == (
        "quality_tuned.start_from: StableDiffusionPipeline; "
        "evaluation_images.contestants.pretrained: StableDiffusionPipeline"
    )
    refuse_unfit(["raw_corpus", "quality_tuned", "evaluation_images"])


def test_what_cannot_be_tuned_is_refused_before_anything_is_made(project, checkpoint):
    file = bring(project, checkpoint) / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rescale_betas_zero_snr": True}))
    refuse_unfit(["raw_corpus", "curated_set"])  # which do not read it
    for keys in (["raw_corpus", "quality_tuned"], ["evaluation_images"]):
        with pytest.raises(ValueError, match=r"^(quality_tuned\.start|evaluation_images\.cont).*ends in pure noise"):
            refuse_unfit(keys)
    with pytest.raises(doctor._Missing, match=r"^quality_tuned\.start_from: .*rescale_betas_zero_snr"):
        doctor._brought()
    shutil.rmtree(file.parent.parent)
    with pytest.raises(ValueError, match=r"^quality_tuned\.start_from: there is no folder"):
        refuse_unfit(["quality_tuned"])


def test_a_file_of_prompts_is_read_before_anything_is_made(project, checkpoint):
    bring(project, checkpoint)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["evaluation_images"]["prompts_file"] = "mine.txt"
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match="there is no file .*mine.txt"):
        refuse_unfit(["evaluation_images"])
    (project / "mine.txt").write_text("a fox\na bird\n")
    assert doctor._brought().endswith("evaluation_images.prompts_file: 2 prompts")


def test_contestants_are_models_files_or_folders_of_pictures(project, checkpoint):
    bring(project, checkpoint, others="data/pictures", published="models:/emu/1")
    (project / "data" / "pictures").mkdir()
    refuse_unfit(["evaluation_images"])
    bring_file = project / "data" / "pictures.safetensors"
    bring_file.write_bytes(b"weights")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["evaluation_images"]["contestants"]["others"] = "data/pictures.safetensors"
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=r"^evaluation_images\.contestants\.others: .* in a single file"):
        refuse_unfit(["evaluation_images"])


@pytest.mark.parametrize(
    ("reported", "shown"),
    [
        (
            "dagster._core.definitions.events.Failure: data/sd lacks vae/. (It stopped.)",
            "data/sd lacks vae/. (It stopped.)",
        ),
        ("ValueError: the corpus: has no rows", "the corpus: has no rows"),
        ("emu_data.votes.log.VoteLogError: altered", "altered"),
        ("KeyError: 'loss'", "KeyError: 'loss'"),
    ],
)
def test_the_last_line_has_no_class_before_a_message_for_users(reported, shown):
    assert FOR_PEOPLE.sub("", reported) == shown


@pytest.mark.parametrize("source", ["folder", "img2dataset", "table"])
def test_a_corpus_of_nothing_is_refused_before_anything_is_made(project, source):
    load_declarations()
    params: dict[str, Any] = yaml.safe_load(text_of("smoke"))
    params["raw_corpus"] |= {"source": source, "path": str(project / "mine")}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=r"^raw_corpus\.path: there is no .*mine"):
        refuse_unfit(["raw_corpus"])
    (project / "mine").mkdir()
    with pytest.raises(ValueError, match=r"^raw_corpus\.path: .*mine holds no "):
        refuse_unfit(["raw_corpus", "alignment_model"])
    with pytest.raises(doctor._Missing, match=r"^raw_corpus\.path: .*mine holds no "):
        doctor._brought()
    refuse_unfit(["alignment_model"])  # a corpus that was read before is not asked for again


def test_a_table_without_rows_is_refused(tmp_path):
    (tmp_path / "empty.csv").write_text("path,caption\n")
    with pytest.raises(ValueError, match=r"empty\.csv has column names but no rows"):
        register_table(Store(str(tmp_path / "empty.csv")), tmp_path / "raw", progress=False)
