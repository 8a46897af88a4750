"""`emu up` on free ports over a project, and what a test asks of Dagster's page by GraphQL."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.e2e.conftest import Project

REPOSITORY = {"repositoryLocationName": "emu", "repositoryName": "__repository__"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or "chromium"
QUIET_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
RUNS = """{ runsOrError { ... on Runs { results {
    runId jobName status startTime endTime repositoryOrigin { repositoryLocationName } } } } }"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Pages:
    """A running `emu up`. printed: all that it has said so far."""

    process: subprocess.Popen
    dagster: str
    mlflow: str
    reports: str

    def ask(self, query: str, **variables: Any) -> Any:
        """The data that Dagster's GraphQL answers."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.dagster}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found
        return found["data"]

    def launch(self, job: str) -> str:
        """Launches a job as the page's Launch button does; returns the run's id."""
        mutation = """mutation($given: ExecutionParams!) { launchPipelineExecution(executionParams: $given) {
            __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
        given = {"selector": {**REPOSITORY, "pipelineName": job}, "runConfigData": {}, "mode": "default"}
        answer = self.ask(mutation, given=given)["launchPipelineExecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def runs(self) -> list[dict[str, Any]]:
        """All runs, the latest first."""
        return self.ask(RUNS)["runsOrError"]["results"]

    def wait(self, run_id: str, seconds: float = 600) -> str:
        """The status with which a run ends."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = next(run["status"] for run in self.runs() if run["runId"] == run_id)
            if status in ("SUCCESS", "FAILURE", "CANCELED"):
                return status
            time.sleep(1)
        raise AssertionError(f"{run_id} has not ended")

    def messages(self, run_id: str) -> list[str]:
        """What the run's page lists as its events."""
        query = """query($id: ID!) { logsForRun(runId: $id, limit: 2000) { ... on EventConnection {
            events { ... on MessageEvent { message } ... on ExecutionStepFailureEvent { error { message causes
            { message } } } } } } }"""
        events = self.ask(query, id=run_id)["logsForRun"]["events"]
        return [f"{event.get('message', '')} {event.get('error') or ''}".strip() for event in events]


@contextmanager
def serve(project: Project) -> Iterator[Pages]:
    """`emu up` until the block ends; then Ctrl-C, and all has to be gone."""
    ports = [free_port() for _ in range(4)]
    options = [
        item
        for name, port in zip(("dagster", "mlflow", "reports", "studio"), ports, strict=True)
        for item in (f"--{name}-port", str(port))
    ]
    process = subprocess.Popen(
        ["emu", "up", *options], cwd=project.root, env=project.environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    printed = ""
    while "Reports" not in printed:
        line = process.stdout.readline()
        assert line, f"emu up ended: {printed}"
        printed += line
    pages = Pages(process, *re.findall(r"http://127\.0\.0\.1:\d+", printed))
    try:
        yield pages
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(120)
        finally:
            process.kill()
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
