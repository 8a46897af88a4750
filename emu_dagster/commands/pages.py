"""`emu up`: starts and stops the pages of Dagster, MLflow, the reports and the studio on this machine together.

The servers' logs are in data/cache/logs. Dagster loads a changed params.yaml by itself.
"""

import contextlib
import functools
import json
import os
import signal
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
from emu_dagster.machine.addresses import HOST, Ports, refuse_taken, remember_ports
from emu_dagster.resources.gpu import TrainingProcess, end_session
from emu_dagster.resources.instance import open_instance
from emu_dagster.resources.mlflow import MlflowTracking
from emu_dagster.resources.mlflow_store import local_uri, settle_store
from emu_steps.layout import Layout, project_root
from emu_steps.params import Launch, read_params

START_SECONDS = 120  # within which both pages have to answer; chosen here
STOP_SECONDS = 2.5  # for the servers to end after a signal, when no run is in progress; chosen here
SETTLE_SECONDS = 1.0  # for which params.yaml has to stay unchanged before it is loaded; chosen here
ABANDONED_SECONDS = 10.0  # between two searches for runs whose process was killed; chosen here
TITLES = {"dagster": "Dagster", "mlflow": "MLflow", "reports": "Reports", "studio": "Studio"}
LAST_LINES = 15  # of a server's log, shown if it died; chosen here
LOADED = """{ __typename
  ... on WorkspaceLocationEntry { locationOrLoadError { __typename
    ... on PythonError { message errorChain { error { message } } } } }
  ... on PythonError { message } }"""
ENTRY = f'{{ entry: workspaceLocationEntryOrError(name: "emu") {LOADED} }}'
RELOAD = f'mutation {{ entry: reloadRepositoryLocation(repositoryLocationName: "emu") {LOADED} }}'


def serve(ports: Ports) -> int:
    """Run `dagster dev`, `mlflow server`, the studio and the reports' server until Ctrl-C or SIGTERM; return the exit
    code.

    Raises ValueError if a port is not valid, given twice or in use; RuntimeError, with the last lines of its log, if a
    server ended.
    """
    _check_ports(ports)
    layout = Layout(project_root())
    instance = open_instance()  # makes or migrates its storage, before two processes would do it at once
    remember_ports(layout, ports)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # SIGINT too: a shell's background job ignores it
        signal.signal(number, signal.default_int_handler)
    watcher = ParamsWatcher(layout.root / "params.yaml", ports.dagster)  # first: it may change while Dagster starts
    with _serve_reports(layout, ports.reports), _start_servers(layout, ports, instance) as servers:
        try:
            _wait_until_up(servers)
            for name, port in asdict(ports).items():
                print(f"{TITLES[name]:<7}  http://{HOST}:{port}", flush=True)
            watcher.begin()
            looked = 0.0
            while not (ended := [server for server in servers if server.process.poll() is not None]):
                time.sleep(SETTLE_SECONDS / 2)
                watcher.look()
                if time.monotonic() - looked > ABANDONED_SECONDS:  # otherwise the queue would wait for them for ever
                    looked = time.monotonic()
                    close_abandoned_runs(instance)
                    MlflowTracking().settle(instance)
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
        refuse_taken(f"--{name}-port", port)


class Server:
    """A server's process. It leads its own session: Ctrl-C reaches it only once, through us, and its whole group can be
    ended. It gets SIGTERM if we are killed.
    """

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
        """Return the exit code of a server that ended, where its log is, and the last lines of that log."""
        last = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        lines = "\n".join(["its last lines:", *(f"  {line}" for line in last)]) if last else "its log is empty"
        return f"{self.name}'s server ended with code {self.process.returncode} ({self.log}); {lines}"


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
    studio = [sys.executable, "-m", "emu_dagster.cli", "studio", "--port", str(ports.studio)]
    # MLflow's jobs (scoring LLM traces) are not used here, and their seven consumers take ten seconds to stop
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": os.environ.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")}
    servers = [
        Server("Dagster", f"http://{HOST}:{ports.dagster}", dagster, logs / "dagster.log", {}),
        Server("MLflow", f"http://{HOST}:{ports.mlflow}", mlflow, logs / "mlflow.log", quiet),
        # of its pages only a static one answers those who were not invited
        Server("Studio", f"http://{HOST}:{ports.studio}/static/studio.css", studio, logs / "studio.log", {}),
    ]
    try:
        yield servers
    finally:
        _stop(servers, instance)


def _stop(servers: list[Server], instance: dg.DagsterInstance) -> None:
    """End the runs in progress, whose trainings save their states, and then the servers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    canceled = _cancel_runs(instance)
    helpers = [helper for server in servers for helper in _descendants(server.process)]
    # Dagster's web server waits for the live queries of every open page before it ends, up to a minute. It holds no
    # state: runs, ticks and events are written by the daemon and by the runs themselves.
    _kill(helpers, "dagster_webserver")
    for server in servers:  # before waiting for the runs: the daemon would start the next one of the queue
        with contextlib.suppress(ProcessLookupError):
            server.process.send_signal(signal.SIGINT)
    if canceled:
        print(f"waiting for {len(canceled)} run(s) in progress to stop; a training saves its state", flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: a training also saves if its parent dies
            _wait_for_runs(instance, canceled)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    deadline = time.monotonic() + STOP_SECONDS
    for server in servers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(max(0.0, deadline - time.monotonic()))
    _kill(helpers)  # they have no runs left; Dagster's code servers would take long to close their connections
    for server in servers:
        end_session(server.process)


def _descendants(process: subprocess.Popen) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def _kill(processes: list[psutil.Process], *words: str) -> None:
    """Kill the processes that have one of `words` in their command line; if no words are given, all."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if not words or set(words) & set(process.cmdline()):
                process.kill()


def _cancel_runs(instance: dg.DagsterInstance) -> list[str]:
    """Cancel the runs that Dagster's page, schedules and sensors started; return their ids.

    Runs of an `emu` command in another terminal continue: they are in its process.
    """
    going = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    canceled = []
    for run in instance.get_runs(dg.RunsFilter(statuses=going)):
        # the servers of a run may have been killed: then nothing is left that could stop it
        with contextlib.suppress(Exception):
            if GRPC_INFO_TAG in run.tags and instance.run_launcher.terminate(run.run_id):
                canceled.append(run.run_id)
    return canceled


def _wait_for_runs(instance: dg.DagsterInstance, run_ids: list[str]) -> None:
    try:
        launch = read_params(project_root() / "params.yaml").launch
    except ValueError:  # somebody is changing it
        launch = Launch()
    trainer = TrainingProcess(grace_seconds=launch.grace_seconds)
    deadline = time.monotonic() + trainer.save_seconds + STOP_SECONDS
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
                raise RuntimeError(f"{server.url} did not answer within {START_SECONDS} s; its log is {server.log}")
            time.sleep(0.5)


class ParamsWatcher:
    """Makes Dagster reload its definitions after params.yaml has changed, because code versions depend on it."""

    def __init__(self, path: Path, dagster_port: int) -> None:
        self.path, self.url = path, f"http://{HOST}:{dagster_port}/graphql"
        self.loaded = self.seen = self._read()
        self.since = time.monotonic()
        self.was_wrong = False

    def begin(self) -> None:
        """Report why Dagster could not load the definitions when it started, if so. To be called once it is up."""
        self._report(self._ask(ENTRY))

    def look(self) -> None:
        """Reload the definitions if params.yaml has changed, and then stayed unchanged for SETTLE_SECONDS. To be called
        repeatedly.
        """
        found = self._read()
        if found != self.seen:
            self.seen, self.since = found, time.monotonic()
        elif found != self.loaded and time.monotonic() - self.since >= SETTLE_SECONDS:
            self.loaded = found
            self._report(self._ask(RELOAD))

    def _report(self, problem: str) -> None:
        if problem:
            print(f"emu: {problem}; Dagster's page shows this error, too", file=sys.stderr, flush=True)
        elif self.was_wrong:
            print("emu: the graph could be loaded again", file=sys.stderr, flush=True)
        self.was_wrong = bool(problem)

    def _read(self) -> bytes:
        with contextlib.suppress(OSError):
            return self.path.read_bytes()
        return b""

    def _ask(self, query: str) -> str:
        """Return why the definitions cannot be loaded, on one line; empty if they can."""
        body = json.dumps({"query": query}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
                entry: dict[str, Any] = json.load(answer)["data"]["entry"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"Dagster did not load params.yaml ({error}): click Reload on its page"
        error = entry.get("locationOrLoadError") or entry
        if error["__typename"] in ("RepositoryLocation", "WorkspaceLocationEntry"):  # the latter: not yet loaded
            return ""
        messages = [error.get("message", error["__typename"])]
        messages += [link["error"]["message"] for link in error.get("errorChain", [])]
        return " ".join(messages[-1].removeprefix("ValueError: ").split())


class _Reports(SimpleHTTPRequestHandler):
    """Serves the files of data/reports, read-only and without a log."""

    error_message_format = "<h1>%(code)d</h1><p>%(explain)s. Reports appear here as the graph writes them.</p>\n"

    def log_message(self, format: str, *args: Any) -> None:
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
