"""MLflow's records if the project moves, if two commands open them at once, and if its server does not answer."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import mlflow
import pytest

from emu_dagster.machine.environment import PATIENCE
from emu_dagster.resources import outbox
from emu_dagster.resources.mlflow import MlflowTracking
from emu_dagster.resources.mlflow_store import TrackerAway
from emu_dagster.resources.outbox import Outbox, deliver, leave_message

TOP = Path(__file__).parents[2]
FAIL_SECONDS = 15  # issue 11: the time within which an asset reports that its server does not answer
MODEL = """
import mlflow
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[str]) -> list[str]:
        return model_input
mlflow.models.set_model(Echo())
"""
REGISTER = """
import mlflow, sys
from emu_dagster.resources.mlflow import MlflowTracking
MlflowTracking().connect()
with mlflow.start_run():
    mlflow.log_text("words", "note.txt")
    model = mlflow.pyfunc.log_model(name="model", python_model="echo.py", registered_model_name="emu",
        artifacts={"weights": "weights"}, pip_requirements=["mlflow"])
mlflow.MlflowClient().set_registered_model_alias("emu", "champion", model.registered_model_version)
"""
LOAD = """
import mlflow
from emu_dagster.resources.mlflow import MlflowTracking
MlflowTracking().connect()
model = mlflow.pyfunc.load_model("models:/emu@champion")
with mlflow.start_run() as run:
    mlflow.log_text("words", "note.txt")
for old in mlflow.search_runs(output_format="list"):
    print(mlflow.artifacts.load_text(old.info.artifact_uri + "/note.txt"))
info = mlflow.models.get_model_info("models:/emu@champion")
print(mlflow.artifacts.download_artifacts(artifact_uri="models:/emu@champion/artifacts/weights"))
print(run.info.artifact_uri)
"""


def run_in(root: Path, code: str, **variables: str) -> str:
    environment = os.environ | {"EMU_ROOT": str(root), "PYTHONPATH": str(TOP), **PATIENCE, **variables}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def list_texts(database: Path) -> set[str]:
    """Return every text in the database."""
    texts = set()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in connection.execute(f"SELECT * FROM {table}"):
                texts |= {value for value in row if isinstance(value, str)}
    return texts


@pytest.mark.slow
def test_a_copied_and_a_moved_project_have_their_own_records(tmp_path: Path) -> None:
    first, copy, moved = (tmp_path / name for name in ("first", "a_copy", "moved"))
    first.mkdir()
    (first / "echo.py").write_text(MODEL)
    (first / "weights").mkdir()
    (first / "weights" / "w").write_text("1")
    run_in(first, REGISTER)
    shutil.copytree(first, copy)
    before = {p: p.read_bytes() for p in first.rglob("*") if p.is_file()}
    *notes, weights, artifacts = run_in(copy, LOAD).split()
    assert notes == ["words", "words"]
    assert Path(weights).is_relative_to(copy) and Path(artifacts).is_relative_to(copy)
    assert {p: p.read_bytes() for p in first.rglob("*") if p.is_file()} == before
    # nothing that MLflow follows leads back (it may say where a picture came from)
    assert not [t for t in list_texts(copy / "mlflow/mlflow.db") if t.startswith(f"{first}/mlflow")]
    first.rename(moved)  # the old folder is gone
    *notes, weights, artifacts = run_in(moved, LOAD).split()
    assert Path(weights).is_relative_to(moved) and Path(artifacts).is_relative_to(moved)
    assert not first.exists()


AT_ONCE = """
import os, sys, time
import dagster as dg, mlflow
from pathlib import Path
from emu_dagster.resources.instance import open_instance
from emu_dagster.resources.mlflow import MlflowTracking
@dg.asset
def something(): ...
for root in sys.argv[1:]:
    os.environ |= {"EMU_ROOT": root, "DAGSTER_HOME": f"{root}/dagster_home"}
    (Path(root) / str(os.getpid())).touch()
    while not (Path(root) / "go").exists():
        time.sleep(0.001)
    with open_instance() as instance:
        experiment = MlflowTracking().connect()
        with mlflow.start_run():
            mlflow.log_metric("a", 1)
        assert dg.materialize([something], instance=instance).success
    print(experiment)
"""


@pytest.mark.slow
def test_the_first_commands_of_a_project_at_once(tmp_path: Path) -> None:
    """MLflow's database and Dagster's are created once; the others wait. Three processes, in three new projects."""
    roots = [tmp_path / name for name in ("a", "b", "c")]
    for root in roots:
        (root / "dagster_home").mkdir(parents=True)
        shutil.copy(TOP / "dagster_home" / "dagster.yaml", root / "dagster_home")
    command = [sys.executable, "-c", AT_ONCE, *map(str, roots)]
    pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(TOP)}
    processes = [subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) for _ in range(3)]
    for root in roots:
        while sum((root / str(p.pid)).exists() for p in processes) < 3 and all(p.poll() is None for p in processes):
            time.sleep(0.01)
        (root / "go").touch()
    ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for *_, code in ends] == [0] * 3, ends
    assert {printed for printed, *_ in ends} == {"1\n1\n1\n"}


@contextlib.contextmanager
def mute_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("kind", ["no connection", "no answer within"])
def test_an_asset_without_its_tracking_server_fails_soon_with_one_line(
    project: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PATIENCE.items():
        monkeypatch.setenv(name, value)

    @dg.asset
    def network(context: dg.AssetExecutionContext) -> None:
        with tracking.run_for(context, {}, {}):
            raise AssertionError("not begun")

    server = mute_server() if kind == "no answer within" else contextlib.nullcontext(f"http://127.0.0.1:{free_port()}")
    with server as uri:
        tracking = MlflowTracking(tracking_uri=uri)
        began = time.monotonic()
        with pytest.raises(TrackerAway, match=rf"{uri} does not answer \({kind}.*unset it") as raised:
            dg.materialize([network], instance=dg.DagsterInstance.ephemeral())
        assert time.monotonic() - began < FAIL_SECONDS
    assert "\n" not in str(raised.value)


class Server:
    """An MLflow server with a database, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        store = f"sqlite:///{self.folder}/server.db"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--artifacts-destination", str(self.folder / "served")],
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.2)
        raise AssertionError("no MLflow server")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    with contextlib.suppress(ProcessLookupError):
        server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["kill", pytest.param("pause", marks=pytest.mark.campaign)])
def test_what_a_dead_server_missed_is_reported_later(
    project: Path, server: Server, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training's numbers and pictures, and that its asset failed; the training itself notices nothing."""
    from PIL import Image

    for name, value in PATIENCE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(outbox, "CLOSE_SECONDS", 0.1)
    tracking = MlflowTracking(tracking_uri=server.uri)
    runs = []
    seconds = {}

    @dg.asset
    def network(context: dg.AssetExecutionContext) -> None:
        with tracking.run_for(context, {"a": 1}, {}) as run:
            runs.append(run.info.run_id)
            box = Outbox(server.uri, run.info.run_id)
            box.put_metrics("net", 1, {"loss": 3.0})
            time.sleep(2)
            getattr(server, end)()
            began = time.monotonic()
            for step in range(2, 50):
                box.put_metrics("net", step, {"loss": 1.0 / step})
            box.put_picture("samples", 2, Image.new("RGB", (4, 4)))
            box.close()
            seconds["training"] = time.monotonic() - began
            mlflow.log_metric("last", 1.0)  # only what the asset itself reports makes it fail

    began = time.monotonic()
    with pytest.raises(TrackerAway, match="does not answer"):
        dg.materialize([network], instance=dg.DagsterInstance.ephemeral())
    assert seconds["training"] < 2
    assert time.monotonic() - began - seconds["training"] < FAIL_SECONDS + 6  # and the earlier start, with its server
    assert mlflow.active_run() is None
    server.kill()
    assert not deliver(server.uri)
    server.start()
    deadline = time.monotonic() + 30
    while not deliver(server.uri) and time.monotonic() < deadline:
        time.sleep(0.5)
    client = mlflow.MlflowClient(server.uri)
    history = client.get_metric_history(runs[0], "net/loss")
    assert sorted(point.step for point in history) == list(range(1, 50))
    assert client.get_run(runs[0]).info.status == "FAILED"
    assert any(a.path.startswith("images/samples") for a in client.list_artifacts(runs[0], "images"))
    assert not list(outbox.outbox_folder().glob("[0-9]*"))


def test_messages_that_cannot_be_sent_stop_nothing(project: Path) -> None:
    """For a run that was deleted, for another server, and if the outbox is not writable."""
    tracking = MlflowTracking()
    tracking.connect()
    uri = tracking.resolve_uri()
    with mlflow.start_run() as run:
        pass
    leave_message(uri, "0" * 32, metrics=[["loss", 1.0, 1, 1]])
    leave_message("http://elsewhere", "1" * 32, metrics=[["loss", 1.0, 1, 1]])
    leave_message(uri, run.info.run_id, metrics=[["loss", 0.5, 1, 1]])
    assert deliver(uri)
    assert mlflow.MlflowClient().get_run(run.info.run_id).data.metrics == {"loss": 0.5}
    (left,) = outbox.outbox_folder().glob("[0-9]*")
    assert json.loads(left.read_text())["uri"] == "http://elsewhere"
    shutil.rmtree(project / "data")
    (project / "data").write_text("in the way")
    leave_message(uri, run.info.run_id, metrics=[])
    assert deliver(uri)
