"""Two real processes under torchrun learn what one learns; a killed process continues as if it had not been killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from emu_models.latent import trainings
from emu_models.training.distributed import World
from emu_models.training.running import Running
from tests.shards import write_toy_shards
from tests.toy_training import (
    GENTLE,
    autoencoder_job,
    denoiser_job,
    keep_single_precision,
    matching_job,
    result_of,
    training_of,
)

ROOT = Path(__file__).parents[2]
# 5 rows do not divide by 2 processes; 3 do not divide by parts of 2
UNEVEN = {"batch_size": 5}
PARTS = {"batch_size": 5, "micro_batch_size": 2}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Here as in the processes: with two threads, this process, which has loaded more libraries, would add in another
    order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Any]:
    """A corpus and an autoencoder, as toy_training.py takes them."""
    folder = tmp_path_factory.mktemp("given")
    shards, rows = write_toy_shards(folder, num_images=24)
    trainings.train_autoencoder(*autoencoder_job((shards, rows), folder / "autoencoder"))
    return {
        "shards": str(shards),
        "rows": str(rows),
        "autoencoder": str(result_of(folder / "autoencoder")),
    }


@pytest.fixture(scope="module")
def alone(given, tmp_path_factory) -> Path:
    """What one process learns from batches of 5 without being stopped."""
    keep_single_precision()
    folder = tmp_path_factory.mktemp("alone")
    corpus = (Path(given["shards"]), Path(given["rows"]))
    trainings.train_denoiser(*denoiser_job(corpus, folder, Path(given["autoencoder"]), GENTLE, UNEVEN, prompts=()))
    return folder


def run(jobs: list[dict[str, Any]], num_processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command = [sys.executable, *(launcher if num_processes > 1 else []), "tests/toy_training.py", json.dumps(jobs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


def assert_learned_the_same(folder: Path, other: Path, tolerance: float) -> None:
    """Compare averaged weights, the rest of the state, and the metrics."""
    names = [f"state/{name}.safetensors" for name in ("network", "averaged", "network.optimizer")]
    for name in names:
        mine, theirs = load_file(training_of(folder) / name), load_file(training_of(other) / name)
        assert mine.keys() == theirs.keys() and len(mine) > 50
        gaps = {key: (mine[key] - theirs[key]).abs().max().item() for key in mine}
        worst = max(gaps, key=lambda key: gaps[key])
        assert gaps[worst] <= tolerance, f"{name}: {worst} differs by {gaps[worst]}"
    lines = [(training_of(f) / "metrics.jsonl").read_text().splitlines() for f in (folder, other)]
    assert len(lines[0]) == len(lines[1]) and sum("val_loss" in line for line in lines[0]) == 3
    for mine, theirs in zip(*lines, strict=True):
        assert json.loads(mine) == pytest.approx(json.loads(theirs), rel=1e-4, abs=1e-12)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(given, alone, tmp_path):
    """With whole copies, with shards of one, and in small parts; one is stopped and continues under another
    strategy."""
    jobs = [
        {**given, "folder": str(tmp_path / "ddp"), "strategy": "ddp", "training": UNEVEN},
        {**given, "folder": str(tmp_path / "parts"), "strategy": "fsdp", "training": PARTS, "prompts": ["a square"],
         "loop": {"sample_every": 3}},
        {**given, "folder": str(tmp_path / "stopped"), "strategy": "fsdp", "training": UNEVEN, "stop_at": 3},
        {**given, "folder": str(tmp_path / "stopped"), "strategy": "hsdp", "training": UNEVEN},
    ]  # fmt: skip
    done = run(jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        reported = [line for line in done.stdout.splitlines() if line.startswith(f"rank {rank}")]
        assert [line.split(maxsplit=2)[2] for line in reported] == [
            "began at 0",
            "began at 0",
            "interrupted",
            "began at 3",
        ]
    for name in ("ddp", "parts", "stopped"):
        assert_learned_the_same(tmp_path / name, alone, 1e-5)


@pytest.mark.slow
def test_models_that_compare_pictures_with_captions_are_the_same_from_two_processes(given, tmp_path):
    rows = tmp_path / "rows.parquet"
    pd.read_parquet(given["rows"]).assign(group=lambda table: table["key"]).to_parquet(rows)
    corpus = (Path(given["shards"]), rows)
    jobs = []
    for kind in ("alignment", "judge"):
        job = {**given, "rows": str(rows), "kind": kind, "folder": str(tmp_path / kind)}
        jobs += [{**job, "strategy": "ddp"}, {**job, "strategy": "fsdp"}]  # the second finds it finished
    done = run(jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in ("alignment", "judge"):
        matching_job(kind, corpus, tmp_path / f"{kind} alone").run(Running())
        results = [result_of(tmp_path / name) for name in (kind, f"{kind} alone")]
        files = [{p.relative_to(result): p.read_bytes() for p in result.rglob("*.*")} for result in results]
        assert files[0].keys() == files[1].keys() and len(files[0]) > 3
        assert [str(name) for name, content in files[0].items() if content != files[1][name]] == []


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("num", [1, 5, 8])
def test_every_position_counts_once_and_shares_have_equal_lengths(size, num):
    seen = torch.zeros(num)
    shares = [World(rank, size).share(num) for rank in range(size)]
    assert len({len(positions) for positions, _ in shares}) == 1
    for positions, weights in shares:
        assert len(positions) == len(weights)
        seen.index_add_(0, torch.from_numpy(positions), weights)
    assert (seen == 1).all()


@pytest.mark.slow
def test_a_process_killed_at_any_step_continues_bitwise(given, alone, tmp_path):
    """kill -9 in the middle, twice; a state is saved at every step, and the killed step is learned again."""
    job = {**given, "folder": str(tmp_path), "training": UNEVEN, "loop": {"checkpoint_seconds": 0.0}}
    for kill_at, num_saved in ((2, 1), (4, 4)):  # the fourth step of the second process is the fifth of all
        killed = run([{**job, "kill_at": kill_at}], num_processes=1)
        assert killed.returncode == -signal.SIGKILL
        assert json.loads((training_of(tmp_path) / "state" / "meta.json").read_text())["step"] == num_saved
        assert not (result_of(tmp_path)).exists()
    # the fingerprint holds the configuration, which must be the same
    corpus = (Path(given["shards"]), Path(given["rows"]))
    loop = replace(GENTLE, checkpoint_seconds=0.0)
    job = denoiser_job(corpus, tmp_path, Path(given["autoencoder"]), loop, UNEVEN, prompts=())
    assert trainings.train_denoiser(*job).timings["resumed_from"] == 4
    assert_learned_the_same(tmp_path, alone, 0.0)
