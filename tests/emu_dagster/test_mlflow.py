"""One MLflow run for each (Dagster run, asset, partition): found again, linked both ways, ended right."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from emu_dagster.resources.mlflow import PROCESS_TAG, MlflowTracking, flatten

PARAMS = {"steps": 10, "optimiser": {"name": "adam", "betas": [0.9, 0.99]}}
INPUTS = {"raw_corpus": "0123456789abcdef0123456789abcdef.dir"}


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> MlflowTracking:
    """One database for the module: making it takes MLflow seconds."""
    return MlflowTracking(root=str(tmp_path_factory.mktemp("root")), profile="smoke")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def materialize(
    tracking: MlflowTracking,
    instance: dg.DagsterInstance,
    body: Callable[[Any], None],
    params: dict = PARAMS,
    partition: str | None = None,
    retries: int = 0,
    **options: Any,
) -> dg.ExecuteInProcessResult:
    """Materialise an asset that runs `body(run)` inside `run_for`."""

    @dg.asset(
        name=body.__name__,
        partitions_def=dg.StaticPartitionsDefinition([partition]) if partition else None,
        retry_policy=dg.RetryPolicy(max_retries=retries) if retries else None,
    )
    def network(context: dg.AssetExecutionContext, tracking: MlflowTracking) -> None:
        with tracking.run_for(context, params, INPUTS) as run:
            body(run)

    return dg.materialize(
        [network], instance=instance, resources={"tracking": tracking}, partition_key=partition, **options
    )


def runs_of(tracking: MlflowTracking, asset: str) -> list[Any]:
    import mlflow

    experiment = tracking.connect()
    return mlflow.MlflowClient().search_runs([experiment], f"tags.`dagster.asset` = '{asset}'")


def test_run_holds_params_inputs_tags_and_status(tracking: MlflowTracking, instance: dg.DagsterInstance) -> None:
    import mlflow

    def plain(run: Any) -> None:
        mlflow.log_metrics({"loss": 0.25}, step=3)

    result = materialize(tracking, instance, plain, partition="group_0")
    (run,) = runs_of(tracking, "plain")
    assert run.data.params == {"steps": "10", "optimiser.name": "adam", "optimiser.betas": "[0.9, 0.99]"}
    assert run.data.metrics == {"loss": 0.25}
    assert run.info.status == "FINISHED"
    tags = {name: run.data.tags[name] for name in ("dagster.run_id", "dagster.partition", "emu.profile")}
    assert tags == {
        "dagster.run_id": result.run_id,
        "dagster.partition": "group_0",
        "emu.profile": "smoke",
    }
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("raw_corpus", INPUTS["raw_corpus"])
    dagster_run = instance.get_run_by_id(result.run_id)
    assert dagster_run and dagster_run.tags["mlflow/plain.group_0"] == run.info.run_id
    assert Path(run.info.artifact_uri).is_relative_to(Path(tracking.root) / "mlflow")


def test_retry_goes_on_in_the_same_run(tracking: MlflowTracking, instance: dg.DagsterInstance) -> None:
    import mlflow

    attempts = []

    def flaky(run: Any) -> None:
        attempts.append(run.info.run_id)
        mlflow.log_metric("attempt", len(attempts), step=len(attempts))
        if len(attempts) == 1:
            raise OSError("a passing fault")

    materialize(tracking, instance, flaky, retries=1)
    (run,) = runs_of(tracking, "flaky")
    assert attempts == [run.info.run_id] * 2
    assert (run.info.status, run.data.metrics["attempt"]) == ("FINISHED", 2.0)


def test_other_materialisations_and_other_params_are_other_runs(
    tracking: MlflowTracking, instance: dg.DagsterInstance
) -> None:
    def again(run: Any) -> None:
        pass

    for params in (PARAMS, PARAMS, PARAMS | {"steps": 11}):
        materialize(tracking, instance, again, params=params)
    assert len(runs_of(tracking, "again")) == 3


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("wrong"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
    ids=["exception", "interrupt"],
)
def test_run_ends_as_the_work_ended(
    tracking: MlflowTracking, instance: dg.DagsterInstance, error: BaseException, status: str
) -> None:
    def failing(run: Any) -> None:
        raise error

    failing.__name__ = f"ending_{status.lower()}"
    with pytest.raises(type(error)):
        materialize(tracking, instance, failing)
    (run,) = runs_of(tracking, failing.__name__)
    assert run.info.status == status


def test_child_process_logs_to_the_same_run(tracking: MlflowTracking, instance: dg.DagsterInstance) -> None:
    import mlflow

    code = "import os, mlflow\nmlflow.MlflowClient().log_metric(os.environ['MLFLOW_RUN_ID'], 'loss', 0.5, step=1)\n"

    def parent(run: Any) -> None:
        environment = tracking.child_environment(run)
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        mlflow.log_metric("psnr", 30.0)

    materialize(tracking, instance, parent)
    (run,) = runs_of(tracking, "parent")
    assert run.data.metrics == {"loss": 0.5, "psnr": 30.0}
    assert run.info.status == "FINISHED"


def test_runs_of_dead_processes_are_closed(tracking: MlflowTracking, instance: dg.DagsterInstance) -> None:
    import mlflow

    def crashed(run: Any) -> None:
        pass

    materialize(tracking, instance, crashed)
    (run,) = runs_of(tracking, "crashed")
    client = mlflow.MlflowClient()
    # As kill -9 leaves it: RUNNING, and its process gone.
    host = run.data.tags[PROCESS_TAG].rsplit(":", 2)[0]
    client.set_tag(run.info.run_id, PROCESS_TAG, f"{host}:999999999:0")
    client.update_run(run.info.run_id, status="RUNNING")
    materialize(tracking, instance, crashed)
    assert sorted(run.info.status for run in runs_of(tracking, "crashed")) == ["FINISHED", "KILLED"]


def test_a_run_that_ended_before_dagster_knew_is_not_counted(
    tracking: MlflowTracking, instance: dg.DagsterInstance
) -> None:
    """As kill -9 leaves it between MLflow's end of the run and Dagster's materialisation."""

    @dg.asset
    def unlucky(context: dg.AssetExecutionContext) -> None:
        with tracking.run_for(context, PARAMS, INPUTS):
            pass
        if len(runs_of(tracking, "unlucky")) == 2:
            raise OSError("the machine goes down")

    for _ in range(4):
        dg.materialize([unlucky], instance=instance, raise_on_error=False)
    statuses = [run.info.status for run in reversed(runs_of(tracking, "unlucky"))]
    assert statuses == ["FINISHED", "KILLED", "FINISHED", "FINISHED"]


def test_too_long_digest_is_refused(tracking: MlflowTracking, instance: dg.DagsterInstance) -> None:
    @dg.asset
    def network(context: dg.AssetExecutionContext) -> None:
        with tracking.run_for(context, {}, {"raw_corpus": "a" * 64}):
            pass

    with pytest.raises(ValueError, match="raw_corpus is 64 characters"):
        dg.materialize([network], instance=instance)


def test_environment_overrides_the_default_and_the_field_overrides_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MlflowTracking(root=str(tmp_path)).resolve_uri() == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert MlflowTracking(root=str(tmp_path)).resolve_uri() == "http://tracking:5000"
    assert MlflowTracking(tracking_uri="sqlite:///x.db").resolve_uri() == "sqlite:///x.db"


def test_flatten_dots_the_names() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": None}) == {"a.b.c": "1", "d": "None"}
