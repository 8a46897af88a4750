"""`emu up`: Dagster's, MLflow's and the reports' pages on this machine, started together and stopped together.

What the servers log goes to data/cache/logs. A changed params.yaml is loaded by Dagster without a click.
"""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from dagster._core.storage.tags import GRPC_INFO_TAG

from emu_dagster.machine.abandoned import close_abandoned_runs
from emu_dagster.resources.addresses import HOST, Ports, remember_ports
from emu_dagster.resources.gpu import TrainingProcess, end_session
from emu_dagster.resources.instance import open_instance
from emu_dagster.resources.mlflow import MlflowTracking
from emu_dagster.resources.mlflow_store import local_uri, settle_store
from emu_steps.layout import Layout, project_root

START_SECONDS = 120  # for both pages to answer; chosen here
STOP_SECONDS = 2.5  # for the servers to end after a signal, when no run is in progress; chosen here
SETTLE_SECONDS = 1.0  # that params.yaml has to stay as it is before it is loaded; chosen here
ABANDONED_SECONDS = 10.0  # between two looks for runs whose process was killed; chosen here
LAST_LINES = 15  # of a server's log, shown where it died; chosen here
LOADED = """{ __typename
  ... on WorkspaceLocationEntry { locationOrLoadError { __typename
    ... on PythonError { message errorChain { error { message } } } } }
  ... on PythonError { message } }"""
ENTRY = f'{{ entry: workspaceLocationEntryOrError(name: "emu") {LOADED} }}'
RELOAD = f'mutation {{ entry: reloadRepositoryLocation(repositoryLocationName: "emu") {LOADED} }}'


def serve(ports: Ports) -> int:
    """Runs `dagster dev`, `mlflow server` and the reports' server until Ctrl-C or SIGTERM; returns the exit code.

    ValueError: a port that is none, is given twice or is taken. RuntimeError: a server ended; its last lines.
    """
    _check_ports(ports)
    layout = Layout(project_root())
    instance = open_instance()  # makes or migrates its storage before two processes would
    remember_ports(layout, ports)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # a shell's background job would ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    watcher = ParamsWatcher(layout.root / "params.yaml", ports.dagster)  # first: it may change while Dagster starts
    with _serve_reports(layout, ports.reports), _start_servers(layout, ports, instance) as servers:
        try:
            _wait_until_up(servers)
            for name, port in (("Dagster", ports.dagster), ("MLflow", ports.mlflow), ("Reports", ports.reports)):
                print(f"{name:<7}  http://{HOST}:{port}", flush=True)
            watcher.begin()
            looked = 0.0
            while not (ended := [server for server in servers if server.process.poll() is not None]):
                time.sleep(SETTLE_SECONDS / 2)
                watcher.look()
                if time.monotonic() - looked > ABANDONED_SECONDS:  # else the queue would wait for such a run for ever
                    looked = time.monotonic()
                    close_abandoned_runs(instance)
            raise RuntimeError(ended[0].describe_end())
        except KeyboardInterrupt:
            return 0


def _check_ports(ports: Ports) -> None:
    given = asdict(ports)
    for name, port in given.items():
        if not 0 < port < 65536:
            raise ValueError(f"--{name}-port {port}: a port is a number from 1 to 65535")
        if twice := [other for other in given if other != name and given[other] == port]:
            raise ValueError(f"port {port} is given twice, for {name} and {twice[0]}")
        with contextlib.closing(socket.socket()) as probe:
            if probe.connect_ex((HOST, port)) == 0:
                raise ValueError(f"port {port} is taken; choose another with --{name}-port")


class Server:
    """A server's process, which leads a session of its own: Ctrl-C reaches it once, through us, and its group can be
    ended as one. It gets SIGTERM when we are killed."""

    def __init__(self, name: str, url: str, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.name, self.url, self.log = name, url, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "emu_dagster.machine.stopping", *command],
                cwd=project_root(),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def describe_end(self) -> str:
        last = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        told = "\n".join(["its last lines:", *(f"  {line}" for line in last)]) if last else "it said nothing"
        return f"{self.name}'s server ended with code {self.process.returncode} ({self.log}); {told}"


@contextlib.contextmanager
def _start_servers(layout: Layout, ports: Ports, instance: dg.DagsterInstance) -> Iterator[list[Server]]:
    logs, uri = layout.cache / "logs", MlflowTracking().resolve_uri()
    if uri == local_uri(layout.root):
        settle_store(layout.root)
    dagster = [
        *("dagster", "dev", "-w", str(layout.root / "workspace.yaml"), "-h", HOST),
        *("-p", str(ports.dagster), "--log-level", "warning"),
    ]
    mlflow = [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", HOST),
        *("--port", str(ports.mlflow), "--workers", "1"),
    ]
    # MLflow's jobs (scoring of LLM traces) are not used here, and their seven consumers take ten seconds to stop
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": os.environ.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")}
    servers = [
        Server("Dagster", f"http://{HOST}:{ports.dagster}", dagster, logs / "dagster.log", {}),
        Server("MLflow", f"http://{HOST}:{ports.mlflow}", mlflow, logs / "mlflow.log", quiet),
    ]
    try:
        yield servers
    finally:
        _stop(servers, instance)


def _stop(servers: list[Server], instance: dg.DagsterInstance) -> None:
    """Ends the servers, and before them the runs in progress, whose trainings save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    canceled = _cancel_runs(instance)
    helpers = [helper for server in servers for helper in _descendants(server.process)]
    # Dagster's web server waits for the live queries of every open page before it ends, up to a minute. It holds no
    # state: runs, ticks and events are written by the daemon and by the runs themselves.
    _kill(helpers, "dagster_webserver")
    for server in servers:  # before the wait: the daemon would start the next run of the queue
        with contextlib.suppress(ProcessLookupError):
            server.process.send_signal(signal.SIGINT)
    if canceled:
        print(f"waiting for {len(canceled)} run(s) in progress to stop; a training saves its state", flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):  # impatient: a training also saves when its parent dies
            _wait_for_runs(instance, canceled)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    deadline = time.monotonic() + STOP_SECONDS
    for server in servers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(max(0.0, deadline - time.monotonic()))
    _kill(helpers)  # no run is left in them; Dagster's code servers take long to say good-bye to one another
    for server in servers:
        end_session(server.process)


def _descendants(process: subprocess.Popen) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def _kill(processes: list[psutil.Process], *words: str) -> None:
    """Kills those that have one of the words among their command line's; without words, all."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if not words or set(words) & set(process.cmdline()):
                process.kill()


def _cancel_runs(instance: dg.DagsterInstance) -> list[str]:
    """Cancels the runs that Dagster's page, schedules and sensors started; returns their ids.

    Those of the `emu` command in another terminal go on: they are in its process.
    """
    going = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    canceled = []
    for run in instance.get_runs(dg.RunsFilter(statuses=going)):
        # a run of servers that were killed has no one who could stop it
        with contextlib.suppress(Exception):
            if GRPC_INFO_TAG in run.tags and instance.run_launcher.terminate(run.run_id):
                canceled.append(run.run_id)
    return canceled


def _wait_for_runs(instance: dg.DagsterInstance, run_ids: list[str]) -> None:
    deadline = time.monotonic() + TrainingProcess().save_seconds + STOP_SECONDS
    while time.monotonic() < deadline:
        if all((run := instance.get_run_by_id(run_id)) is None or run.is_finished for run_id in run_ids):
            return
        time.sleep(0.3)


def _wait_until_up(servers: list[Server]) -> None:
    deadline = time.monotonic() + START_SECONDS
    for server in servers:
        while True:
            if server.process.poll() is not None:
                raise RuntimeError(server.describe_end())
            with contextlib.suppress(OSError), urllib.request.urlopen(server.url, timeout=2):
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{server.url} does not answer after {START_SECONDS} s; its log is {server.log}")
            time.sleep(0.5)


class ParamsWatcher:
    """Has Dagster load its definitions anew when params.yaml has changed, since code versions are made of it."""

    def __init__(self, path: Path, dagster_port: int) -> None:
        self.path, self.url = path, f"http://{HOST}:{dagster_port}/graphql"
        self.loaded = self.seen = self._read()
        self.since = time.monotonic()
        self.was_wrong = False

    def begin(self) -> None:
        """To be called when Dagster is up: says what keeps it from loading what there was when it was started."""
        self._tell(self._ask(ENTRY))

    def look(self) -> None:
        """To be called again and again: loads what has been the same for SETTLE_SECONDS."""
        found = self._read()
        if found != self.seen:
            self.seen, self.since = found, time.monotonic()
        elif found != self.loaded and time.monotonic() - self.since >= SETTLE_SECONDS:
            self.loaded = found
            self._tell(self._ask(RELOAD))

    def _tell(self, problem: str) -> None:
        if problem:
            print(f"emu: {problem}; Dagster's page shows it, too", file=sys.stderr, flush=True)
        elif self.was_wrong:
            print("emu: the graph is loaded again", file=sys.stderr, flush=True)
        self.was_wrong = bool(problem)

    def _read(self) -> bytes:
        with contextlib.suppress(OSError):
            return self.path.read_bytes()
        return b""

    def _ask(self, query: str) -> str:
        """What keeps the definitions from being loaded, as one line; empty where nothing does."""
        body = json.dumps({"query": query}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
                entry: dict[str, Any] = json.load(answer)["data"]["entry"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"Dagster could not be asked to load params.yaml ({error}): click Reload on its page"
        error = entry.get("locationOrLoadError") or entry
        if error["__typename"] in ("RepositoryLocation", "WorkspaceLocationEntry"):  # the latter: not yet loaded
            return ""
        messages = [error.get("message", error["__typename"])]
        messages += [link["error"]["message"] for link in error.get("errorChain", [])]
        return " ".join(messages[-1].removeprefix("ValueError: ").split())


class _Reports(SimpleHTTPRequestHandler):
    """Files of data/reports, to be looked at only; nothing is logged."""

    error_message_format = "<h1>%(code)d</h1><p>%(explain)s. Reports appear here as the graph writes them.</p>\n"

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def _serve_reports(layout: Layout, port: int) -> Iterator[None]:
    handler = functools.partial(_Reports, directory=str(layout.index.parent))
    with ThreadingHTTPServer((HOST, port), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield
        server.shutdown()
