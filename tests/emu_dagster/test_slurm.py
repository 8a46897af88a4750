"""configs/slurm with a stand-in for Slurm: srun runs one torchrun per "machine", both on this one."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.emu_dagster.test_gpu import folder, materialize, parent_process  # noqa: F401 (a fixture)
from tests.processes import runs

CONFIGS = Path(__file__).parents[2] / "configs" / "slurm"
LAUNCHER = f"bash {CONFIGS / 'launch.sh'}"
SRUN = """#!/usr/bin/env python3
import os, signal, subprocess, sys
command = sys.argv[sys.argv.index("torchrun") :]
tasks = [subprocess.Popen(command) for _ in range(int(os.environ["SLURM_JOB_NUM_NODES"]))]
signal.signal(signal.SIGINT, signal.SIG_IGN)  # srun only reports then
signal.signal(signal.SIGTERM, lambda number, frame: [task.send_signal(number) for task in tasks])
sys.exit(max([abs(task.wait()) for task in tasks]))
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$SCONTROL_LOG"; fi
"""


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    given = {"JOB_ID": "7", "JOB_NUM_NODES": "2", "JOB_NODELIST": "node[1-2]"}
    given = {f"SLURM_{name}": value for name, value in given.items()} | {"EMU_PORT": str(port)}
    given |= {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "SCONTROL_LOG": str(folder / "requeued")}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.mark.slow
def test_the_processes_of_two_machines_train_together_and_save_on_an_interrupt(slurm: Path) -> None:
    messages = materialize("trainer", {"folder": str(slurm), "steps": 3}, launcher=LAUNCHER)
    assert [message["rank"] for message in messages] == ["0"]
    assert (slurm / "pid_0").read_text() != (slurm / "pid_1").read_text()
    for rank in (0, 1):
        (slurm / f"pid_{rank}").unlink()
    with parent_process(slurm, 10_000, 2, LAUNCHER) as (parent, children):
        parent.send_signal(signal.SIGINT)
        assert parent.wait(timeout=120) != 0
    assert all((slurm / f"saved_{rank}").is_file() for rank in (0, 1))
    assert not any(runs(child) for child in children)


def test_a_preempted_job_is_told_to_save_and_queued_again(slurm: Path) -> None:
    """`emu` is a stand-in, too: it takes a second to end after TERM."""
    emu = slurm / "bin" / "emu"
    emu.write_text('#!/bin/bash\ntrap "sleep 1; echo saved; exit 3" TERM\necho "$@"\nwhile true; do sleep 0.05; done\n')
    emu.chmod(0o755)
    command = ["bash", str(CONFIGS / "emu.sbatch"), "pretrained_low"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "materialize pretrained_low\n"
        job.send_signal(signal.SIGTERM)
        rest, _ = job.communicate(timeout=240)
    assert (rest, job.returncode) == ("saved\n", 3)
    assert (slurm / "requeued").read_text() == "requeue 7\n"
