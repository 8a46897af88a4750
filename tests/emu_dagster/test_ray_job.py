"""A training as a Ray job. The job server wants packages that are not in the lock, so a stand-in runs the jobs: it has
the methods of ray.job_submission.JobSubmissionClient that are used, and starts real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ray.job_submission import JobStatus

from emu_dagster.machine.stopping import STOPPED
from emu_dagster.training.ray_job import run_job

SAVES = """
import sys, time
from emu_dagster.machine.stopping import STOPPED, save_on_signal
stop = save_on_signal()
print("training", flush=True)
while not stop.requested:
    time.sleep(0.02)
open("saved", "w").write("state")
sys.exit(STOPPED)
"""


class LocalJobs:
    """Runs one job in its own session, with nothing of our environment except what the job is given."""

    def submit_job(self, entrypoint: str, entrypoint_num_gpus: float, runtime_env: dict) -> str:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ["PYTHONPATH"], **runtime_env["env_vars"]}
        self.process = subprocess.Popen(
            entrypoint, shell=True, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True
        )
        self.stopped, self.num_gpus = False, entrypoint_num_gpus
        return "job"

    def get_job_status(self, job: str) -> JobStatus:
        code = self.process.poll()
        if code is None:
            return JobStatus.RUNNING
        return JobStatus.STOPPED if self.stopped else JobStatus.SUCCEEDED if code == 0 else JobStatus.FAILED

    def stop_job(self, job: str) -> None:
        self.stopped = True
        os.killpg(self.process.pid, signal.SIGTERM)

    def get_job_info(self, job: str):
        return type("Info", (), {"message": f"exit code {self.process.poll()}"})

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield line


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalJobs:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("emu_dagster.training.ray_job.POLL_SECONDS", 0.05)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return LocalJobs()


def test_a_job_runs_in_the_same_folder_with_the_variables_of_its_training(jobs, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.setenv("SECRET", "mine")
    code = "import os; open('seen', 'w').write(f\"{os.environ['MLFLOW_RUN_ID']} {os.environ.get('SECRET')}\")"
    assert run_job(jobs, [sys.executable, "-c", code], 2, lambda: False) == 0
    assert (tmp_path / "seen").read_text() == "abc None"
    assert jobs.num_gpus == 2


def test_a_job_that_fails_fails(jobs, capsys):
    assert run_job(jobs, [sys.executable, "-c", "raise SystemExit(7)"], 0, lambda: False) == 1
    assert "exit code 7" in capsys.readouterr().err


def test_an_interrupt_lets_the_job_save(jobs, tmp_path, capfd):
    began = time.monotonic()

    def interrupted() -> bool:
        return "training" in capfd.readouterr().out or time.monotonic() - began > 60

    assert run_job(jobs, [sys.executable, "-c", SAVES], 0, interrupted) == STOPPED
    assert (tmp_path / "saved").read_text() == "state"
