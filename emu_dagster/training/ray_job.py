"""Runs a command as a Ray job and waits for its end: a launcher (params.yaml, launch.command) for a Ray cluster.

    python -m emu_dagster.training.ray_job [--address http://HEAD:8265] [--gpus N] COMMAND…

For example `python -m emu_dagster.training.ray_job --gpus 8 torchrun --nproc-per-node 8`. The cluster must see the
project's folder under the same path and have the same environment installed. `ray job submit` is not used for two
reasons: the job needs the variables that the asset set for its training, and an interrupt must stop the job itself, not
only the command that watches it.
"""

import argparse
import asyncio
import math
import os
import shlex
import sys
import threading
import time
from typing import Any

from emu_dagster.machine.stopping import GRACE_SECONDS, GRACE_VARIABLE, STOPPED, save_on_signal

# Prefixes of the variables that the training needs; the others are the cluster's own.
HANDED_ON = ("DAGSTER_PIPES_", "MLFLOW_", "EMU_", "HF_", "TRANSFORMERS_", "TORCH_", "NCCL_", "OMP_")
POLL_SECONDS = 1.0  # between two checks of the job's status; chosen here


def run_job(client: Any, command: list[str], num_gpus: float, stop_requested: Any) -> int:
    """Submit `command` through a ray.job_submission.JobSubmissionClient, show its output, and return its exit code.

    When `stop_requested()` becomes true, the job is stopped: Ray sends it SIGTERM, and it saves. num_gpus: how many Ray
    reserves for the command.
    """
    variables = {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}
    grace = float(os.environ.get(GRACE_VARIABLE, GRACE_SECONDS))  # before Ray kills a job that is saving
    job = client.submit_job(
        entrypoint=f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(command)}",
        entrypoint_num_gpus=num_gpus,
        runtime_env={"env_vars": variables | {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(grace))}},
    )

    async def show() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    threading.Thread(target=lambda: asyncio.run(show()), daemon=True).start()
    stopped = False
    while not (status := client.get_job_status(job)).is_terminal():
        if stop_requested() and not stopped:
            client.stop_job(job)
            stopped = True
        time.sleep(POLL_SECONDS)
    if status.value == "FAILED":
        print(client.get_job_info(job).message, file=sys.stderr)
    return {"SUCCEEDED": 0, "STOPPED": STOPPED}.get(status.value, 1)


def main() -> int:
    """Parse the command line, run the command as a Ray job, and return its exit code."""
    stop = save_on_signal(float(os.environ.get(GRACE_VARIABLE, GRACE_SECONDS)) + 10)
    parser = argparse.ArgumentParser(prog="python -m emu_dagster.training.ray_job")
    parser.add_argument("--address", help="address of the job server; by default RAY_ADDRESS")
    parser.add_argument("--gpus", type=float, default=0, help="number of GPUs that Ray reserves for the command")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    from ray.job_submission import JobSubmissionClient

    return run_job(JobSubmissionClient(given.address), given.command, given.gpus, lambda: stop.requested)


if __name__ == "__main__":
    sys.exit(main())
