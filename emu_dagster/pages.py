"""`emu up`: Dagster's and MLflow's pages on this machine, started together and stopped together."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from emu_dagster.instance import open_instance
from emu_dagster.layout import Layout, project_root
from emu_dagster.resources.gpu import end_session
from emu_dagster.resources.mlflow import MlflowTracking
from emu_dagster.resources.mlflow_store import local_uri, settle_store

START_SECONDS = 120  # for both pages to answer; chosen here
STOP_SECONDS = 20  # for each to end after a signal


def serve(dagster_port: int, mlflow_port: int) -> int:
    """Runs `dagster dev` and `mlflow server` until Ctrl-C or SIGTERM; returns the exit code. ValueError: busy port."""
    for port in (dagster_port, mlflow_port):
        with contextlib.closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise ValueError(f"port {port} is taken; choose others with --dagster-port and --mlflow-port")
    open_instance().dispose()  # makes or migrates its storage before two processes would
    root, uri = project_root(), MlflowTracking().resolve_uri()
    if uri == local_uri(root):
        settle_store(root)
    commands = {
        f"http://127.0.0.1:{dagster_port}": [
            *("dagster", "dev", "-w", str(root / "workspace.yaml"), "-h", "127.0.0.1"),
            *("-p", str(dagster_port), "--log-level", "warning"),
        ],
        f"http://127.0.0.1:{mlflow_port}": [
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"),
            *("--port", str(mlflow_port), "--workers", "1"),
        ],
    }
    # MLflow's jobs (scoring of LLM traces) are not used here, and their seven consumers take ten seconds to stop
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    # sessions of their own: Ctrl-C reaches them once, through us, and a group can be ended as one
    processes = {
        url: subprocess.Popen(command, cwd=root, env=environment, start_new_session=True)
        for url, command in commands.items()
    }
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell's background job would ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        _wait_until_up(processes)
        dagster_url, mlflow_url = processes
        print(f"\n  Dagster  {dagster_url}\n  MLflow   {mlflow_url}")
        if (index := Layout(root).index).is_file():
            print(f"  Reports  {index.relative_to(root)}")
        print("\nCtrl-C stops both.", flush=True)
        while all(process.poll() is None for process in processes.values()):
            time.sleep(0.5)
        return 1
    except KeyboardInterrupt:
        print("\nstopping", flush=True)
        return 0
    finally:
        for process in processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        for process in processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            end_session(process)  # workers of the servers that outlived them


def _wait_until_up(processes: dict[str, subprocess.Popen]) -> None:
    deadline = time.monotonic() + START_SECONDS
    for url, process in processes.items():
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"the server of {url} ended with code {process.returncode}; its message is above")
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{url} does not answer after {START_SECONDS} s")
            time.sleep(0.5)
