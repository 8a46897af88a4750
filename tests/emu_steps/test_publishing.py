"""What a training leaves in data/states and data/models, at whatever point it is killed."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emu_models.latent import trainings
from emu_steps.layout import Layout
from emu_steps.training_jobs import publish, published, training_folder
from tests.shards import write_toy_shards
from tests.toy_training import autoencoder_job

TOP = Path(__file__).parents[2]


def read_files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def write_result(layout: Layout, asset: str, identity: str, place: str = "") -> dict[str, Any]:
    """Write a finished training of `asset`, as the child reports it."""
    folder = training_folder(layout, asset, identity)
    (folder / "result" / "unet").mkdir(parents=True)
    (folder / "result" / "meta.json").write_text(json.dumps({"identity": identity}))
    (folder / "result" / "unet" / "weights").write_text(identity)
    return {"name": place or asset, "folder": str(folder), "out": str(layout.model(asset) / place)}


def test_the_last_published_one_is_there_and_every_other_is_kept(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    results = {name: write_result(layout, "toy", name) for name in ("one", "other")}
    before = read_files(tmp_path / "data" / "states")
    for name in ("one", "other", "one"):
        publish(layout, "toy", [results[name]])
        assert published(layout.model("toy")) == [name]
        assert (layout.model("toy") / "unet" / "weights").read_text() == name
    (layout.model("toy") / "unet" / "weights").write_text("edited in place")
    assert read_files(tmp_path / "data" / "states") == before


def test_parts_that_are_no_longer_requested_go_with_the_next_publishing(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    results = [write_result(layout, "study", name, name) for name in ("c4", "c8")]
    publish(layout, "study", results)
    assert sorted(published(layout.model("study"))) == ["c4", "c8"]
    publish(layout, "study", results[:1])
    assert os.listdir(layout.model("study")) == ["c4"]


@pytest.mark.parametrize("meta", [None, {"identity": "of a clone"}, {"name": "of an earlier version"}])
def test_a_model_that_was_not_trained_here_is_moved_not_removed(tmp_path: Path, meta: Any) -> None:
    layout = Layout(tmp_path)
    for number in (1, 2):
        model = layout.model("toy")
        model.mkdir(parents=True, exist_ok=True)
        for file in model.glob("*.json"):
            file.unlink()
        (model / "weights").write_text(f"irreplaceable {number}")
        if meta is not None:
            (model / "meta.json").write_text(json.dumps(meta))
        publish(layout, "toy", [write_result(layout, "toy", f"mine {number}")])
        kept = training_folder(layout, "toy", f"replaced-{number}")
        assert (kept / "weights").read_text() == f"irreplaceable {number}"
        assert published(model) == [f"mine {number}"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("given")
    shards, rows = write_toy_shards(folder, num_images=24)
    result = trainings.train_autoencoder(*autoencoder_job((shards, rows), folder))
    return {"shards": str(shards), "rows": str(rows), "autoencoder": str(result.folder / "result")}


def run(given: dict[str, str], root: Path, *runs: tuple[int, int]) -> list[tuple[int, int, str]]:
    """Return for each run (killed at which write, number of steps): its writes, how it ended, what was published
    then."""
    command = [sys.executable, "tests/killed_training.py", json.dumps({**given, "root": str(root), "runs": runs})]
    environment = os.environ | {"PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, timeout=280)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(lines) == len(runs), done.stderr[-3000:]
    return [(int(writes), int(ended), digest) for writes, ended, digest in lines]


@pytest.mark.slow
def test_killed_at_any_write_it_ends_with_the_bytes_of_an_undisturbed_run(
    given: dict[str, str], tmp_path: Path
) -> None:
    ((num_writes, ended, alone),) = run(given, tmp_path / "alone", (0, 4))
    assert ended == 0 and num_writes > 50
    rng = random.Random(11)
    # each continues where the one before was killed, so that few writes are left for the later ones
    kills = [(rng.randrange(1, num_writes // most), 4) for most in (4, 4, 4, 2, 4)]
    found = run(given, tmp_path / "killed", *kills, (0, 4))
    assert sum(ended == signal.SIGKILL for _, ended, _ in found) > 2
    assert {digest for *_, digest in found} <= {"none", alone}
    assert found[-1][1:] == (0, alone)


@pytest.mark.slow
def test_publishing_killed_at_any_write_leaves_a_whole_model_or_none(given: dict[str, str], tmp_path: Path) -> None:
    (_, _, old), (_, _, new), (num_writes, _, again) = run(given, tmp_path, (0, 1), (0, 2), (0, 1))
    assert old == again != new
    kills = random.Random(12).sample(range(1, num_writes + 1), 4)
    # each time that the publishing of the one-step training is killed, the model of two steps is there
    found = run(given, tmp_path, *(one for kill_at in kills for one in ((0, 2), (kill_at, 1))), (0, 1))
    assert all(ended == signal.SIGKILL for _, ended, _ in found[1::2])
    assert {digest for *_, digest in found[1::2]} <= {old, new, "none"}
    assert found[-1][1:] == (0, old)
