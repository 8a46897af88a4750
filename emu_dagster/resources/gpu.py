"""Training in a child process through Dagster Pipes: one training per device, and no process left behind.

Dagster's PipesSubprocessClient passes on the messages but does not control how the process ends, so the process is
started here, inside Dagster's own `open_pipes_session`:
- there is a lock file for each device, held by the child itself, because Dagster's pool frees its slot if a run worker
  dies while the trainer continues;
- the child leads its own session, so that Ctrl-C in a terminal reaches it once, through us, and so that its descendants
  are found and ended however it ended;
- it gets SIGTERM if we die (`emu_dagster.machine.stopping.save_on_signal`, called by the child): it saves and exits.
"""

import fcntl
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from dagster._utils.interrupts import capture_interrupts

from emu_dagster.machine.stopping import (
    CAUSE_VARIABLE,
    GRACE_SECONDS,
    GRACE_VARIABLE,
    PARENT_VARIABLE,
    STOPPED,
    die_with_parent,
    read_cause,
)
from emu_dagster.resources import INTERRUPTS
from emu_steps.layout import Layout, project_root

# Dagster's Pipes (1.13.27) warn about names that Dagster itself uses.
warnings.filterwarnings("ignore", module=r"dagster\._core\.pipes\.")

POLL_SECONDS = 0.5  # between two checks whether the device is free; chosen here
# A child's own deadline comes first; then that of torchrun, which kills what it started; then ours. Chosen here.
MARGIN_SECONDS = 15.0
RETRY_SECONDS = 30  # before a training is started again: a scheduler takes as long to replace a machine; chosen here


class TrainingProcess(dg.ConfigurableResource):
    """Runs a Python module that trains, in a child process that Dagster Pipes connects to the asset.

    `launcher`: the command that starts the module, as one line, to which "-m MODULE" is appended. If empty, this Python
    runs it in one process. `torchrun --nproc-per-node 8` and `accelerate launch --config_file …` start several, on this
    machine or on others that see the project's folder, and pass SIGINT on to all.
    `strategy`: how several processes share the weights, for emu_models.training.distributed: ddp, fsdp or hsdp.
    `grace_seconds`: how long the processes may take to save after an interrupt; MARGIN_SECONDS later they are killed.
    `retries`: how often Dagster starts a training again, which then continues from its last state, after it lost a
    process or was stopped by a signal that we did not send.
    """

    launcher: str = ""
    strategy: str = "ddp"
    grace_seconds: float = GRACE_SECONDS
    retries: int = 0

    @property
    def save_seconds(self) -> float:
        """Seconds after which a child that was interrupted is killed."""
        return self.grace_seconds + MARGIN_SECONDS

    def train(
        self,
        context: dg.AssetExecutionContext,
        module: str,
        config: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        device: str = "auto",
    ) -> list[Any]:
        """Run `LAUNCHER -m module` to its end and return the custom messages that it reported, in order.

        `config` (JSON values) is what the child reads as `pipes.extras`; `environment` is added to ours (see
        `MlflowTracking.child_environment`). `device`: "auto", "cpu", "mps", "cuda" or "cuda:N"; waits while another
        training holds it.

        The asset must return a MaterializeResult: inside a Pipes session Dagster does not make one. Raises
        dagster.Failure if the child fails; the message says whether the same command resumes. Raises
        dagster.RetryRequested instead, up to `retries` times, if a process was killed or stopped by a signal, or if
        contact with one was lost. An interrupt is passed on to the child, which saves; then the Dagster run counts as
        canceled, and the interrupt is raised again.
        """
        if multiprocessing.parent_process() is not None:
            die_with_parent(signal.SIGINT)  # the step of a killed run worker must not continue to train
        launcher = shlex.split(self.launcher) or [sys.executable]
        messages = Layout(project_root()).cache / "pipes" / f"{context.run.run_id}-{uuid.uuid4().hex[:8]}.jsonl"
        messages.parent.mkdir(parents=True, exist_ok=True)
        cause = messages.with_suffix(".cause")  # written by the child (machine.stopping.leave_cause)
        with (
            hold_devices(context, device) as lock_files,
            dg.open_pipes_session(
                context=context,
                # input by environment variables and output in the project's folder also work across machines
                context_injector=dg.PipesEnvContextInjector(),
                message_reader=dg.PipesFileMessageReader(str(messages)),
                extras={**config, "strategy": self.strategy},
            ) as session,
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", "emu_dagster.machine.stopping", *launcher, "-m", module],
                env={
                    **os.environ,
                    **(environment or {}),
                    **session.get_bootstrap_env_vars(),
                    PARENT_VARIABLE: str(os.getpid()),
                    CAUSE_VARIABLE: str(cause),
                    GRACE_VARIABLE: str(self.grace_seconds),
                    # torchrun kills what it started 30 s after an interrupt; a large state takes longer to save
                    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(self.grace_seconds + MARGIN_SECONDS / 2)),
                    # one store for all starts, torchrun's default (2.14), keeps the addresses of killed processes, and
                    # those that it starts again may read them
                    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                },
                pass_fds=lock_files,
                start_new_session=True,
            )
            try:
                code = process.wait()
            except INTERRUPTS:
                with capture_interrupts():  # further interrupts by an impatient user must not cut the save short
                    process.send_signal(signal.SIGINT)
                    _cancel(context)
                    context.log.info("Interrupted: the training process is saving its state.")
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=self.save_seconds)
                raise
            finally:
                end_session(process)
        if code:
            message, is_lost = read_cause(cause)
            failure = dg.Failure(_describe(module, code, message), allow_retries=False)
            if not self.retries or (message and not is_lost):
                raise failure
            raise dg.RetryRequested(self.retries, RETRY_SECONDS) from failure
        return list(session.get_custom_messages())


def _cancel(context: dg.AssetExecutionContext) -> None:
    """Mark the run as being canceled, as Dagster's page does; otherwise Dagster calls Ctrl-C a failure.

    Nothing is done if the interrupt came because our run worker died: Dagster must find that run dead and retry it.
    """
    worker = multiprocessing.parent_process()
    if worker is not None and os.getppid() != worker.pid:
        return
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is not None and run.status == dg.DagsterRunStatus.STARTED:
        context.instance.report_run_canceling(run, "Interrupted.")


def _describe(module: str, code: int, cause: str) -> str:
    resume = "The same command resumes from the last saved state."
    if cause:
        return f"{cause.rstrip('.')}. (The training stopped there. {resume})"
    if code == STOPPED:
        return f"Training ({module}) was stopped by a signal and saved its state. {resume}"
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (the system does this if memory runs out)" if name == "SIGKILL" else ""
        return f"The training process ({module}) was ended by {name}{hint}. {resume}"
    return f"The training process ({module}) failed with code {code}; its own message is above. {resume}"


def end_session(process: subprocess.Popen) -> None:
    """Kill the child and whatever is left of its session and its descendants: workers that it started and did not
    end.
    """
    left: list[psutil.Process] = []
    with suppress(psutil.Error):
        left += psutil.Process(process.pid).children(recursive=True)  # torchrun's lead sessions of their own
    for candidate in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error, PermissionError):
            if os.getsid(candidate.pid) == process.pid and candidate.pid != process.pid:
                left.append(candidate)
    if process.poll() is None:
        process.kill()
        process.wait()
    for orphan in left:
        with suppress(psutil.Error):
            orphan.terminate()
    for orphan in psutil.wait_procs(left, timeout=3)[1]:
        with suppress(psutil.Error):
            orphan.kill()


def find_devices(device: str) -> list[str]:
    """Return the names of the devices that a training on `device` uses, without importing torch, which takes seconds
    and memory.

    "auto" and "cuda" are every visible CUDA device; without one, "mps" on a Mac, otherwise "cpu". "cuda:N" is the N-th
    visible one, named as CUDA_VISIBLE_DEVICES names it.
    """
    if device in ("cpu", "mps"):
        return [device]
    ids = sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [item.strip() for item in visible.split(",") if item.strip() not in ("", "-1")]
    if device.startswith("cuda:"):
        index = int(device.removeprefix("cuda:"))
        ids = ids[index : index + 1] or [str(index)]
    if ids:
        return [f"cuda-{item}" for item in sorted(ids)]
    return ["mps" if sys.platform == "darwin" else "cpu"]


@contextmanager
def hold_devices(context: dg.AssetExecutionContext, device: str) -> Iterator[list[int]]:
    """Wait for the devices and yield the descriptors of their lock files, to be passed on to the child.

    The lock belongs to the open file, which we and the child share: it is free when both are gone, so a child that
    outlives a killed parent still holds its device. There is one set of files per user and machine, shared by all
    projects.
    """
    folder = Path(tempfile.gettempdir()) / f"emu-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    files: list[int] = []
    try:
        for name in find_devices(device):  # sorted, so that two trainings never wait for each other
            descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            files.append(descriptor)
            is_reported = False
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not is_reported:
                        context.log.info(f"Waiting for {name}: {_read_holder(descriptor)} is training on it.")
                        is_reported = True
                    time.sleep(POLL_SECONDS)
            holder = {
                "asset": context.asset_key.to_user_string(),
                "pid": os.getpid(),
                "run": context.run.run_id,
            }
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield files
    finally:
        for descriptor in files:
            os.close(descriptor)


def _read_holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"{holder['asset']} of process {holder['pid']}"
    except (ValueError, KeyError):
        return "another process"
