"""Two real processes under torchrun learn what one learns; a killed process continues as if it had not been killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from emu_models.latent import trainings
from emu_models.training import distributed
from emu_models.training.distributed import World
from emu_models.training.running import Running
from tests.flow_checkpoints import make_flow_checkpoint
from tests.shards import write_toy_shards
from tests.toy_training import (
    GENTLE,
    autoencoder_job,
    denoiser_job,
    keep_single_precision,
    matching_job,
    newest_state,
    read_state,
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


def run(
    jobs: list[dict[str, Any]], num_processes: int = 2, num_restarts: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the jobs in processes of their own, which end within 280 s."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    launcher += ["--max-restarts", str(num_restarts)]
    command = [sys.executable, *(launcher if num_processes > 1 else []), "tests/toy_training.py", json.dumps(jobs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # as emu_dagster/resources/gpu.py
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


def assert_learned_the_same(folder: Path, other: Path, tolerance: float) -> None:
    """Compare the last states (weights, averaged weights, optimisers' states) and the metrics."""
    mine, theirs = (read_state(newest_state(training_of(f) / "states")) for f in (folder, other))
    assert mine.keys() == theirs.keys()
    assert {name.split("/")[0] for name in mine} >= {"network", "averaged", "network.optimizer"} and len(mine) > 100
    gaps = {name: (mine[name] - theirs[name]).abs().max().item() for name in mine}
    worst = max(gaps, key=lambda name: gaps[name])
    assert gaps[worst] <= tolerance, f"{worst} differs by {gaps[worst]}"
    lines = [(training_of(f) / "metrics.jsonl").read_text().splitlines() for f in (folder, other)]
    assert len(lines[0]) == len(lines[1]) and sum("val_loss" in line for line in lines[0]) == 3
    for mine, theirs in zip(*lines, strict=True):
        assert json.loads(mine) == pytest.approx(json.loads(theirs), rel=1e-4, abs=1e-12)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(given, alone, tmp_path):
    """With whole copies, with shards of one, and in small parts; one is stopped, continues under another strategy, is
    stopped again and continues alone. Each process wrote only its part of a state."""
    jobs = [
        {**given, "folder": str(tmp_path / "ddp"), "strategy": "ddp", "training": UNEVEN},
        {**given, "folder": str(tmp_path / "parts"), "strategy": "fsdp", "training": PARTS, "prompts": ["a square"],
         "loop": {"sample_every": 3}},
        {**given, "folder": str(tmp_path / "stopped"), "strategy": "fsdp", "training": UNEVEN, "stop_at": 3},
        {**given, "folder": str(tmp_path / "stopped"), "strategy": "ddp", "training": UNEVEN, "stop_at": 2},
    ]  # fmt: skip
    done = run(jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        reported = [line for line in done.stdout.splitlines() if line.startswith(f"rank {rank}")]
        assert [line.split(maxsplit=2)[2] for line in reported] == [
            "began at 0",
            "began at 0",
            "interrupted",
            "interrupted",
        ]
    for name, step in (("ddp", 6), ("parts", 6), ("stopped", 5)):
        sizes = [file.stat().st_size for file in (training_of(tmp_path / name) / "states").glob(f"*{step}/*.s*")]
        assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes)
    corpus = (Path(given["shards"]), Path(given["rows"]))
    job = denoiser_job(corpus, tmp_path / "stopped", Path(given["autoencoder"]), GENTLE, UNEVEN, prompts=())
    assert trainings.train_denoiser(*job).timings["resumed_from"] == 5
    for name in ("ddp", "parts", "stopped"):
        assert_learned_the_same(tmp_path / name, alone, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_two_processes_tune_a_brought_transformer_as_one_does(given, tmp_path, kind):
    """Its class is then one of torch's, derived from its own."""
    given = {**given, "start_from": str(make_flow_checkpoint(kind, tmp_path / kind)), "prompts": ["a square"]}
    jobs = [{**given, "folder": str(tmp_path / "shared"), "strategy": "fsdp", "training": UNEVEN}]
    done = run(jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = [{**given, "folder": str(tmp_path / "alone"), "strategy": "ddp", "training": UNEVEN}]
    done = run(jobs, num_processes=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_learned_the_same(tmp_path / "shared", tmp_path / "alone", 2e-5)


@pytest.mark.slow
def test_the_other_models_are_the_same_from_two_processes(given, tmp_path):
    """Those that compare pictures with captions to the byte, since each process learns from the whole batch; an
    autoencoder, whose batch of 5 is shared, to rounding, on either side of the adversary's start."""
    rows = tmp_path / "rows.parquet"
    pd.read_parquet(given["rows"]).assign(group=lambda table: table["key"]).to_parquet(rows)
    corpus = (Path(given["shards"]), rows)
    jobs = []
    for kind in ("alignment", "judge"):
        job = {**given, "rows": str(rows), "kind": kind, "folder": str(tmp_path / kind)}
        jobs += [{**job, "strategy": "ddp"}, {**job, "strategy": "fsdp"}]  # the second finds it finished
    jobs.append({**given, "kind": "autoencoder", "folder": str(tmp_path / "autoencoder"), "strategy": "fsdp"})
    done = run(jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    keep_single_precision()
    trainings.train_autoencoder(*autoencoder_job(corpus, tmp_path / "autoencoder alone", GENTLE, 5))
    assert_learned_the_same(tmp_path / "autoencoder", tmp_path / "autoencoder alone", 1e-5)
    for kind in ("alignment", "judge"):
        matching_job(kind, corpus, tmp_path / f"{kind} alone").run(Running())
        results = [result_of(tmp_path / name) for name in (kind, f"{kind} alone")]
        files = [{p.relative_to(result): p.read_bytes() for p in result.rglob("*.*")} for result in results]
        assert files[0].keys() == files[1].keys() and len(files[0]) > 3
        assert [str(name) for name, content in files[0].items() if content != files[1][name]] == []


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("num", [1, 5, 8])
def test_the_mean_over_portions_is_that_over_the_batch(size, num):
    values = np.arange(num) ** 2.0
    portions = [World(rank, size).portion(num) for rank in range(size)]
    means = [factor * values[positions].mean() for positions, factor in portions]
    assert np.mean(means) == pytest.approx(values.mean())


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
    # every step's state is kept, and such a save is finished before the next begins
    job = {**given, "folder": str(tmp_path), "training": UNEVEN, "loop": {"keep_every": 1}}
    for kill_at, newest in ((3, 1), (4, 3)):  # a state is whole once the step after it has been agreed upon
        killed = run([{**job, "mishaps": [[0, kill_at, 0, "kill"]]}], num_processes=1)
        assert killed.returncode == -signal.SIGKILL
        assert newest_state(training_of(tmp_path) / "states").name == f"{newest:09d}"
        assert not (result_of(tmp_path)).exists()
    corpus = (Path(given["shards"]), Path(given["rows"]))
    job = denoiser_job(corpus, tmp_path, Path(given["autoencoder"]), GENTLE, UNEVEN, prompts=())
    assert trainings.train_denoiser(*job).timings["resumed_from"] == 3
    assert_learned_the_same(tmp_path, alone, 0.0)


@pytest.mark.campaign
def test_processes_that_are_killed_hang_or_are_told_to_stop_end_in_time_and_continue(given, alone, tmp_path):
    """Under torchrun, which starts them again: one is killed at step 3, then one hangs, then torchrun gets SIGTERM. The
    next command continues to the end."""
    mishaps = [[0, 3, 1, "kill"], [1, 2, 1, "hang"], [2, 2, 0, "terminate the launcher"]]
    job = {**given, "folder": str(tmp_path), "strategy": "fsdp", "training": UNEVEN, "loop": {"keep_every": 1}}
    done = run([{**job, "mishaps": mishaps}], num_restarts=3, TOY_PATIENCE="30", EMU_GRACE_SECONDS="10")
    assert done.returncode != 0
    assert done.stderr.count("ConnectionError: process 0 of 2 lost contact with another one") == 2, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == ["rank 0 interrupted", "rank 1 interrupted"]
    stopped_at = int(newest_state(training_of(tmp_path) / "states").name)
    corpus = (Path(given["shards"]), Path(given["rows"]))
    job = denoiser_job(corpus, tmp_path, Path(given["autoencoder"]), GENTLE, UNEVEN, prompts=())
    assert trainings.train_denoiser(*job).timings["resumed_from"] == stopped_at >= 3
    assert_learned_the_same(tmp_path, alone, 1e-5)


def test_processes_that_do_not_meet_say_so(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", **place}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=2))
    began = time.monotonic()
    said = r"process 1 of 2 did not meet the others at 127\.0\.0\.1:\d+ within"
    with pytest.raises(ConnectionError, match=said), distributed.join_world():
        pass
    assert time.monotonic() - began < 30
