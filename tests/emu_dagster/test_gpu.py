"""Training children: what they report, how they end, and that nothing is left behind. All processes are real."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dagster as dg
import pytest

from emu_dagster.resources import gpu
from emu_dagster.resources.gpu import TrainingProcess, find_devices
from tests.processes import runs

# A child that "trains" until it is stopped; what happened is left in files beside it.
TRAINER = """
import json, os, sys, time
from pathlib import Path
from emu_dagster.machine.stopping import STOPPED, save_on_signal
stop = save_on_signal()
from emu_dagster.training.child import read_extras
rank = os.environ.get("RANK", "0")
with read_extras() as (extras, report):
    folder, steps = Path(extras["folder"]), extras["steps"]
    with (folder / "times").open("a") as times:
        times.write(f"{time.time()} begin\\n")
    (folder / f"pid_{rank}").write_text(str(os.getpid()))
    for step in range(steps):
        if stop.requested:
            time.sleep(0.5)  # a save takes time
            (folder / f"saved_{rank}").write_text(str(step))
            sys.exit(STOPPED)
        time.sleep(0.02)
    with (folder / "times").open("a") as times:
        times.write(f"{time.time()} end\\n")
    report({"loss": 0.5, "steps": steps, "run": os.environ.get("MLFLOW_RUN_ID"), "rank": rank})
"""
# Dagster in its own process, as `emu` runs it.
PARENT = """
import os, sys
import dagster as dg
from emu_dagster.resources.gpu import TrainingProcess

@dg.asset
def network(context: dg.AssetExecutionContext, trainer: TrainingProcess) -> dg.MaterializeResult:
    trainer.train(context, "trainer", {"folder": sys.argv[1], "steps": int(sys.argv[2])}, device="cpu")
    return dg.MaterializeResult()

if __name__ == "__main__":
    instance = dg.DagsterInstance.get()
    trainer = TrainingProcess(launcher=os.environ.get("LAUNCHER", ""))
    dg.materialize([network], instance=instance, resources={"trainer": trainer})
"""
TWO_PROCESSES = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"


@pytest.fixture
def folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project root in which the modules `trainer` and `parent` can be run, with its own locks."""
    (project / "trainer.py").write_text(TRAINER)
    (project / "parent.py").write_text(PARENT)
    monkeypatch.setenv("PYTHONPATH", f"{project}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("TMPDIR", str(project))
    monkeypatch.setattr("tempfile.tempdir", str(project))
    return project


def materialize(
    module: str, config: dict, environment: dict[str, str] | None = None, launcher: str = "", retries: int = 0
) -> list:
    """Run `module` as the child of an asset in this process; return its messages, or raise its error."""
    messages: list = []

    @dg.asset
    def network(context: dg.AssetExecutionContext, trainer: TrainingProcess) -> dg.MaterializeResult:
        messages.extend(trainer.train(context, module, config, environment, device="cpu"))
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        trainer = TrainingProcess(launcher=launcher, retries=retries)
        dg.materialize([network], instance=instance, resources={"trainer": trainer})
    return messages


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextmanager
def parent_process(
    folder: Path, steps: int, ranks: int = 1, launcher: str = TWO_PROCESSES
) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """Yield a Dagster process whose children are training, and their pids. launcher: of several."""
    environment = os.environ | {"LAUNCHER": launcher if ranks > 1 else ""}
    with subprocess.Popen(
        [sys.executable, "parent.py", str(folder), str(steps)], cwd=folder, env=environment
    ) as parent:
        try:
            files = [folder / f"pid_{rank}" for rank in range(ranks)]
            wait_for(lambda: all(file.exists() and file.read_text() for file in files))
            yield parent, [int(file.read_text()) for file in files]
        finally:
            parent.kill()


def test_messages_extras_and_environment_pass_between_asset_and_child(folder: Path) -> None:
    config = {"folder": str(folder), "steps": 3}
    messages = materialize("trainer", config, environment={"MLFLOW_RUN_ID": "abc"})
    assert messages == [{"loss": 0.5, "steps": 3, "run": "abc", "rank": "0"}]


def test_a_launcher_starts_several_and_the_first_reports(folder: Path) -> None:
    messages = materialize("trainer", {"folder": str(folder), "steps": 3}, launcher=TWO_PROCESSES)
    assert [message["rank"] for message in messages] == ["0"]
    assert (folder / "pid_0").read_text() != (folder / "pid_1").read_text()


def test_killed_child_fails_the_asset_and_says_that_the_command_resumes(folder: Path) -> None:
    (folder / "killed.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(dg.Failure, match=r"SIGKILL.*memory.*same command resumes"):
        materialize("killed", {})


def test_failing_child_fails_the_asset(folder: Path) -> None:
    (folder / "failing.py").write_text("raise SystemExit(7)")
    with pytest.raises(dg.Failure, match="code 7"):
        materialize("failing", {})


FAILING = """
from emu_dagster.machine.stopping import leave_cause
with leave_cause():
    import os, time
    time.sleep(5 * int(os.environ.get("RANK", "0")))
    raise {error}
"""


@pytest.mark.parametrize("launcher", ["", TWO_PROCESSES])
def test_the_cause_is_what_the_asset_fails_with(folder: Path, launcher: str) -> None:
    (folder / "failing.py").write_text(FAILING.format(error='ValueError("the picture\\n is missing; bring it")'))
    with pytest.raises(dg.Failure, match=r"^the picture is missing; bring it\. \(The training stopped there\."):
        materialize("failing", {}, launcher=launcher)


def test_an_unexpected_error_is_reported_with_its_type(folder: Path) -> None:
    (folder / "failing.py").write_text(FAILING.format(error='KeyError("loss")'))
    with pytest.raises(dg.Failure, match=r"^KeyError: 'loss'\. "):
        materialize("failing", {})


def test_a_launcher_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(dg.Failure, match=r"No such file or directory"):
        materialize("trainer", {}, launcher="no-such-launcher --all")


MISHAPS = """
import os, signal, sys
from pathlib import Path
from emu_dagster.machine.stopping import STOPPED, leave_cause, save_on_signal
stop = save_on_signal()
from emu_dagster.training.child import read_extras
with leave_cause(), read_extras() as (extras, report):
    starts = Path(extras["folder"]) / "starts"
    with starts.open("a") as file:
        file.write("x")
    mishap = (extras["mishaps"] + ["none"] * 9)[starts.stat().st_size - 1]
    if mishap == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if mishap == "stopped":
        sys.exit(STOPPED)
    if mishap == "lost":
        raise ConnectionError("lost contact")
    if mishap == "wrong":
        raise ValueError("wrong data; bring others")
    report("done")
"""


def test_a_training_that_lost_a_process_is_started_again_one_that_is_wrong_is_not(folder, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "RETRY_SECONDS", 0)
    (folder / "mishaps.py").write_text(MISHAPS)
    mishaps = ["killed", "lost", "stopped"]
    config = {"folder": str(folder), "mishaps": mishaps}
    assert materialize("mishaps", config, retries=3) == ["done"]
    assert (folder / "starts").read_text() == "xxxx"
    (folder / "starts").unlink()
    with pytest.raises(dg.Failure, match="^wrong data"):
        materialize("mishaps", {**config, "mishaps": ["lost", "wrong", "none"]}, retries=3)
    assert (folder / "starts").read_text() == "xx"


def test_workers_of_the_child_do_not_outlive_it(folder: Path) -> None:
    (folder / "leaky.py").write_text(
        "import subprocess, sys\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"open({str(folder / 'worker')!r}, 'w').write(str(worker.pid))\n"
    )
    materialize("leaky", {})
    worker = int((folder / "worker").read_text())
    assert not runs(worker)


@pytest.mark.parametrize("ranks", [1, 2])
def test_interrupt_lets_the_children_save_and_cancels_the_run(folder: Path, ranks: int) -> None:
    with parent_process(folder, 10_000, ranks) as (parent, children):
        for pause in (0.05, 0.1, 0.2, 0.4):  # an impatient user
            parent.send_signal(signal.SIGINT)
            time.sleep(pause)
        assert parent.wait(timeout=120) != 0
    for rank, child in enumerate(children):
        assert int((folder / f"saved_{rank}").read_text()) > 0
        assert not runs(child)
    with dg.DagsterInstance.get() as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.CANCELED]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="parent-death signals are Linux's")
@pytest.mark.parametrize("ranks", [1, 2])
def test_children_save_and_end_when_the_parent_is_killed(folder: Path, ranks: int) -> None:
    with parent_process(folder, 10_000, ranks) as (parent, children):
        parent.kill()
        parent.wait()
        wait_for(lambda: not any(runs(child) for child in children))
    for rank in range(ranks):
        assert int((folder / f"saved_{rank}").read_text()) >= 0


def test_two_trainings_never_share_a_device(folder: Path) -> None:
    command = [sys.executable, "parent.py", str(folder), "50"]
    with ExitStack() as stack:
        parents = []
        for home in (
            folder / "home_0",
            folder / "home_1",
        ):  # two installations that know nothing of each other
            shutil.copytree(folder / "dagster_home", home)
            environment = os.environ | {"DAGSTER_HOME": str(home)}
            parent = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
            parents.append(stack.enter_context(parent))
        logs = [parent.communicate(timeout=240)[1] for parent in parents]
    events = sorted(line.split() for line in (folder / "times").read_text().splitlines())
    assert [name for _, name in events] == ["begin", "end", "begin", "end"]
    assert sum("Waiting for cpu: network of process" in log for log in logs) == 1


def test_a_second_stop_request_changes_nothing_and_there_is_a_deadline() -> None:
    code = (
        "import os, signal, sys, time\n"
        "from emu_dagster.machine.stopping import save_on_signal\n"
        "stop = save_on_signal(grace_seconds=0.5)\n"
        "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(stop.requested, flush=True)\n"
        "time.sleep(30)\n"  # hangs instead of saving
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("True", 130)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        ("", "cpu", ["cpu"]),
        ("", "auto", ["mps" if sys.platform == "darwin" else "cpu"]),
        ("-1", "cuda", ["mps" if sys.platform == "darwin" else "cpu"]),
        ("3,2", "auto", ["cuda-2", "cuda-3"]),
        ("3,2", "cuda:0", ["cuda-3"]),
        ("2", "cuda:0", ["cuda-2"]),
    ],
)
def test_devices_have_one_name_however_they_are_given(
    visible: str, device: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_devices(device) == expected
