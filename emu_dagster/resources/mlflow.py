"""MLflow records what happened: one run for each (Dagster run, asset, partition), resumed on a retry.

mlflow is imported inside the functions: it takes seconds, and the code server must load without it.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from emu_dagster.machine.processes import describe_process, is_alive
from emu_dagster.resources import INTERRUPTS
from emu_dagster.resources.mlflow_store import EXPERIMENT, TrackerAway, find_fault, local_uri, settle_store
from emu_dagster.resources.outbox import deliver, leave_message
from emu_steps.layout import project_root

if TYPE_CHECKING:
    import mlflow

# Tags of every run. DIGEST_TAG is for the caller: the md5 of what the asset wrote, known after DVC's record.
RUN_TAG, ASSET_TAG, PARTITION_TAG = "dagster.run_id", "dagster.asset", "dagster.partition"
PROFILE_TAG, DIGEST_TAG, PROCESS_TAG = "emu.profile", "emu.md5", "emu.process"
MAX_DIGEST = 36  # characters: MLflow's limit for a data set's digest, which md5 + ".dir" just fits
PARAMS_A_CALL = 100  # MLflow's limit for one batch
# Settings of MLflow's for a call that is not expected to succeed.
AT_ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}


class MlflowTracking(dg.ConfigurableResource):
    """Opens MLflow runs for assets.

    `tracking_uri`: empty takes the variable MLFLOW_TRACKING_URI, and where that is unset SQLite in mlflow/ of
    the project, with the artifacts beside it. `root`: empty takes the project's. `profile`: written as a tag.
    """

    tracking_uri: str = ""
    root: str = ""
    profile: str = ""

    def resolve_uri(self) -> str:
        """The tracking URI in effect."""
        return self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or local_uri(self._root)

    @property
    def _root(self) -> Path:
        return Path(self.root) if self.root else project_root()

    def connect(self) -> str:
        """Point mlflow at the tracking URI and return the experiment's id, making it when it is new.

        Raises TrackerAway when the server there does not answer.
        """
        uri = self.resolve_uri()
        if fault := find_fault(uri):
            raise TrackerAway(fault)
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri)
        if before is None:
            # mlflow exports what it was given; it would overrule the default of another root in this process.
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        if uri == local_uri(self._root):
            settle_store(self._root)
        client = mlflow.MlflowClient()
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            with suppress(mlflow.MlflowException):  # another process was faster
                client.create_experiment(EXPERIMENT)
            found = client.get_experiment_by_name(EXPERIMENT)
        assert found is not None
        mlflow.set_experiment(experiment_id=found.experiment_id)
        return found.experiment_id

    @contextmanager
    def run_for(
        self, context: dg.AssetExecutionContext, params: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> Iterator["mlflow.ActiveRun"]:
        """The active MLflow run of this materialisation; `mlflow.log_metrics` and the like write to it.

        `params` (nested mappings become dotted names) and `inputs` (data set name -> DVC's md5) are logged on
        entry. A retry, of the step or of the whole run, finds its run by tags and goes on in it, unless its
        params differ. At the end the run is FINISHED, FAILED after an exception, KILLED after an interrupt.
        Runs of the same asset and partition that a dead process of this machine left RUNNING become KILLED.

        Raises ValueError for a digest longer than 36 characters, TrackerAway when the server does not answer; where it
        stops answering when the work is done, its end is told later.
        """
        import mlflow

        for name, digest in inputs.items():
            if len(digest) > MAX_DIGEST:
                raise ValueError(f"digest of {name} is {len(digest)} characters, MLflow takes {MAX_DIGEST}: {digest}")
        with self._naming_who_is_away():
            experiment_id = self.connect()
            deliver(self.resolve_uri())  # what an earlier process could not send
            flat = flatten(params)
            identity = identify(context)
            tags = identity | {PROCESS_TAG: describe_process()}
            if self.profile:
                tags[PROFILE_TAG] = self.profile
            close_abandoned(experiment_id, identity)
            disown_unfinished(experiment_id, identity, context.instance)
            run_id = find_run(experiment_id, identity, flat)
            name = "/".join(filter(None, [identity[ASSET_TAG], identity.get(PARTITION_TAG)]))
            run = mlflow.start_run(run_id=run_id, experiment_id=experiment_id, run_name=name, tags=tags)
        status = "FAILED"
        try:
            with self._naming_who_is_away():
                if run_id is None:
                    items = list(flat.items())
                    for start in range(0, len(items), PARAMS_A_CALL):
                        mlflow.log_params(dict(items[start : start + PARAMS_A_CALL]))
                    log_inputs(inputs)
                link = {f"mlflow/{name.replace('/', '.')}": run.info.run_id}
                context.instance.add_run_tags(context.run.run_id, link)
                yield run
            status = "FINISHED"
        except INTERRUPTS:
            status = "KILLED"
            raise
        finally:
            self._end(run.info.run_id, status)

    def _end(self, run_id: str, status: str) -> None:
        """Ends the active run. Where the server does not answer, it is told later: the work is done, or has failed."""
        import mlflow

        uri = self.resolve_uri()
        if not find_fault(uri):
            deliver(uri)
            mlflow.end_run(status)
            return
        leave_message(uri, run_id, status=status)
        # mlflow forgets which run is active only by trying to end it
        patience = {name: os.environ.get(name) for name in AT_ONCE}
        os.environ.update(AT_ONCE)
        with suppress(mlflow.MlflowException):
            mlflow.end_run(status)
        for name, value in patience.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    @contextmanager
    def _naming_who_is_away(self) -> Iterator[None]:
        """An error of MLflow's while its server does not answer becomes TrackerAway, which says so in a line."""
        try:
            yield
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("mlflow", "requests", "urllib3"):
                raise
            if fault := find_fault(self.resolve_uri()):
                raise TrackerAway(fault) from None
            raise

    def child_environment(self, run: "mlflow.ActiveRun") -> dict[str, str]:
        """Variables with which a child process logs to `run` (see `emu_dagster.resources.gpu`).

        The child should write through `mlflow.MlflowClient` with the id in MLFLOW_RUN_ID: the fluent
        functions end the run when the child exits.
        """
        return {
            "MLFLOW_TRACKING_URI": self.resolve_uri(),
            "MLFLOW_EXPERIMENT_ID": run.info.experiment_id,
            "MLFLOW_RUN_ID": run.info.run_id,
        }


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one level of dotted names, values as text. Lists stay one value."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def identify(context: dg.AssetExecutionContext) -> dict[str, str]:
    """The tags that name the materialisation. A re-executed Dagster run counts as the run it repeats."""
    run = context.run
    tags = {RUN_TAG: run.root_run_id or run.run_id, ASSET_TAG: context.asset_key.to_user_string()}
    if context.has_partition_key:
        tags[PARTITION_TAG] = context.partition_key
    return tags


def _search(experiment_id: str, tags: Mapping[str, str], status: str = "") -> list[Any]:
    import mlflow

    conditions = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    if status:
        conditions.append(f"attributes.status = '{status}'")
    return list(mlflow.MlflowClient().search_runs([experiment_id], " and ".join(conditions)))


def find_run(experiment_id: str, identity: Mapping[str, str], params: Mapping[str, str]) -> str | None:
    """The id of the run to go on in, or None. MLflow's params cannot change: others mean another run."""
    for run in _search(experiment_id, identity):
        if run.data.params == dict(params):
            return run.info.run_id
    return None


def close_abandoned(experiment_id: str, identity: Mapping[str, str]) -> None:
    """Mark as KILLED the runs of this asset and partition whose process (of this machine) is gone."""
    import mlflow

    same_output = {name: value for name, value in identity.items() if name != RUN_TAG}
    for run in _search(experiment_id, same_output, status="RUNNING"):
        partition = run.data.tags.get(PARTITION_TAG)
        process = run.data.tags.get(PROCESS_TAG, "")
        if partition == identity.get(PARTITION_TAG) and process and not is_alive(process):
            mlflow.MlflowClient().set_terminated(run.info.run_id, status="KILLED")


def disown_unfinished(experiment_id: str, identity: Mapping[str, str], instance: dg.DagsterInstance) -> None:
    """Marks as KILLED the last FINISHED run of this asset and partition where Dagster knows no materialisation by it:
    the process ended in between, and the asset is made again."""
    import mlflow

    same_output = {name: value for name, value in identity.items() if name != RUN_TAG}
    for run in _search(experiment_id, same_output, status="FINISHED")[:1]:  # the newest; earlier ones were looked at
        dagster_run = run.data.tags[RUN_TAG]
        if dagster_run == identity[RUN_TAG] or not instance.has_run(dagster_run):
            continue  # a retry of a step; or another instance's, of which nothing is known here
        again = instance.get_runs(dg.RunsFilter(tags={"dagster/root_run_id": dagster_run}))
        keys = [
            entry.dagster_event.asset_key
            for run_id in (dagster_run, *(repeated.run_id for repeated in again))
            for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
            if entry.dagster_event
        ]
        if dg.AssetKey.from_user_string(identity[ASSET_TAG]) not in keys:
            mlflow.MlflowClient().set_terminated(run.info.run_id, status="KILLED")


def log_inputs(inputs: Mapping[str, str]) -> None:
    """Log data sets by name and digest only to the active run: the bytes are DVC's, found by the same md5."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    for name, digest in inputs.items():
        source = CodeDatasetSource(tags={ASSET_TAG: name, DIGEST_TAG: digest})
        mlflow.log_input(MetaDataset(source, name=name, digest=digest), context="input")
