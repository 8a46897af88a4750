"""One MLflow run per (Dagster run, asset, partition): found again, linked in both directions, ended correctly."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from emu_dagster.resources.mlflow import PROCESS_TAG, SETTLED_TAG, MlflowTracking, flatten

PARAMS = {"steps": 10, "optimiser": {"name": "adam", "betas": [0.9, 0.99]}}
INPUTS = {"raw_corpus": "0123456789abcdef0123456789abcdef.dir"}


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> MlflowTracking:
    """One database for the module, because MLflow takes seconds to make it."""
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


def test_a_retry_continues_the_same_run(tracking: MlflowTracking, instance: dg.DagsterInstance) -> None:
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
def test_a_run_ends_as_the_work_ended(
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


# What a kill leaves: the MLflow run's status, whether its process is alive, whether Dagster has the materialisation.
LEFT = [
    ("RUNNING", False, False, "KILLED"),
    ("RUNNING", False, True, "FINISHED"),  # MLflow's server did not answer when the run ended
    ("RUNNING", True, False, "RUNNING"),
    ("FINISHED", False, False, "KILLED"),
    ("FINISHED", False, True, "FINISHED"),
    ("FAILED", False, False, "FAILED"),
]


@pytest.mark.parametrize(("left", "alive", "made", "settled"), LEFT)
def test_after_a_kill_mlflow_agrees_with_dagster_even_if_nothing_is_made_again(
    tracking: MlflowTracking, instance: dg.DagsterInstance, left: str, alive: bool, made: bool, settled: str
) -> None:
    import mlflow

    key = f"left_{left}_{alive}_{made}".lower()

    @dg.asset(name=key)
    def network(context: dg.AssetExecutionContext) -> None:
        with tracking.run_for(context, PARAMS, INPUTS):
            pass
        if made:
            context.log_event(dg.AssetMaterialization(key))
        raise OSError("the machine goes down")

    dg.materialize([network], instance=instance, raise_on_error=False)
    (run,) = runs_of(tracking, key)
    client = mlflow.MlflowClient()
    client.update_run(run.info.run_id, status=left)
    if not alive:
        client.set_tag(run.info.run_id, PROCESS_TAG, run.data.tags[PROCESS_TAG].rsplit(":", 2)[0] + ":999999999:0")
    tracking.settle(instance)
    (run,) = runs_of(tracking, key)
    assert run.info.status == settled
    (dagster_run,) = instance.get_runs()
    assert (SETTLED_TAG in dagster_run.tags) == (not alive)  # a settled run is not examined again


def test_what_mlflow_refuses_now_is_settled_at_the_next_call(
    tracking: MlflowTracking, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    @dg.asset
    def refused(context: dg.AssetExecutionContext) -> None:
        with tracking.run_for(context, PARAMS, INPUTS):
            pass
        raise OSError("the machine goes down")

    def locked(*_: Any, **__: Any) -> None:
        raise mlflow.MlflowException("database is locked")

    dg.materialize([refused], instance=instance, raise_on_error=False)
    (run,) = runs_of(tracking, "refused")
    mlflow.MlflowClient().update_run(run.info.run_id, status="FINISHED")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_terminated", locked)
        tracking.settle(instance)
    assert [found.info.status for found in runs_of(tracking, "refused")] == ["FINISHED"]
    tracking.settle(instance)
    assert [found.info.status for found in runs_of(tracking, "refused")] == ["KILLED"]


def test_an_event_in_the_log_but_not_in_the_catalogue_is_no_materialisation(
    tracking: MlflowTracking, tmp_path: Path
) -> None:
    """As kill -9 leaves it between the two files into which Dagster writes one event."""

    @dg.asset
    def half_recorded(context: dg.AssetExecutionContext) -> None:
        with tracking.run_for(context, PARAMS, INPUTS):
            pass
        context.log_event(dg.AssetMaterialization("half_recorded"))
        raise OSError("the machine goes down")

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        failed = dg.materialize([half_recorded], instance=instance, raise_on_error=False)
        (catalogue,) = tmp_path.rglob("index.db")
        with closing(sqlite3.connect(catalogue)) as database, database:
            database.execute("DELETE FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'")
        made = instance.all_logs(failed.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        assert made and not instance.fetch_materializations(dg.AssetKey("half_recorded"), limit=1).records
        tracking.settle(instance)
    assert [run.info.status for run in runs_of(tracking, "half_recorded")] == ["KILLED"]


def test_a_run_that_ended_before_dagster_knew_is_not_counted(
    tracking: MlflowTracking, instance: dg.DagsterInstance
) -> None:
    """As kill -9 leaves it between the end of MLflow's run and Dagster's materialisation."""

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


def test_a_digest_that_is_too_long_is_refused(tracking: MlflowTracking, instance: dg.DagsterInstance) -> None:
    @dg.asset
    def network(context: dg.AssetExecutionContext) -> None:
        with tracking.run_for(context, {}, {"raw_corpus": "a" * 64}):
            pass

    with pytest.raises(ValueError, match="raw_corpus has 64 characters"):
        dg.materialize([network], instance=instance)


def test_environment_overrides_the_default_and_the_field_overrides_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MlflowTracking(root=str(tmp_path)).resolve_uri() == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert MlflowTracking(root=str(tmp_path)).resolve_uri() == "http://tracking:5000"
    assert MlflowTracking(tracking_uri="sqlite:///x.db").resolve_uri() == "sqlite:///x.db"


def test_flatten_makes_dotted_names() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": None}) == {"a.b.c": "1", "d": "None"}
