"""MLflow records what happened: one run per (Dagster run, asset, partition), continued on a retry.

mlflow is imported inside the functions, because it takes seconds and the code server must load without it.
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

# Tags of every run. The caller sets DIGEST_TAG, the md5 of what the asset wrote, once DVC has recorded it.
RUN_TAG, ASSET_TAG, PARTITION_TAG = "dagster.run_id", "dagster.asset", "dagster.partition"
PROFILE_TAG, DIGEST_TAG, PROCESS_TAG = "emu.profile", "emu.md5", "emu.process"
SETTLED_TAG = "emu/settled"  # on a Dagster run
NUM_EXAMINED = 100  # latest Dagster runs that did not succeed; chosen here: more than end between two commands
MAX_DIGEST = 36  # characters: MLflow's limit for a data set's digest, the length of an md5 with ".dir"
PARAMS_PER_CALL = 100  # MLflow's limit for one batch
# MLflow's settings for a call that is not expected to succeed.
AT_ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}


class MlflowTracking(dg.ConfigurableResource):
    """Opens MLflow runs for assets.

    `tracking_uri`: if empty, the variable MLFLOW_TRACKING_URI or, if that is unset, SQLite in the project's mlflow/,
    with the artifacts next to it. `root`: if empty, the project's. `profile`: written as a tag.
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
        """Point mlflow to the tracking URI and return the experiment's id; create the experiment if it is new.

        Raises TrackerAway if the server there does not answer.
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
            # mlflow exports the URI that it was given, which would override the default of another root in this process
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

    def settle(self, instance: dg.DagsterInstance) -> None:
        """Make MLflow agree with Dagster about runs that failed or were cancelled: no MLflow run stays RUNNING if its
        process is gone, and none is FINISHED if its asset was not materialised (the process ended in between).

        After a kill, only the next command can do this, even if it has nothing to make. Each Dagster run is examined
        until it is settled, and then tagged. If MLflow's server does not answer, or its database refuses, the runs wait
        for the next call: `emu up` must not end because of them.
        """
        ended = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
        unsettled = [run for run in instance.get_runs(ended, limit=NUM_EXAMINED) if SETTLED_TAG not in run.tags]
        if not unsettled:
            return
        import mlflow

        with suppress(mlflow.MlflowException, TrackerAway):
            experiment_id = self.connect()
            deliver(self.resolve_uri())
            for run in unsettled:
                if _settle(run, experiment_id, instance):
                    instance.add_run_tags(run.run_id, {SETTLED_TAG: "true"})

    @contextmanager
    def run_for(
        self, context: dg.AssetExecutionContext, params: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> Iterator["mlflow.ActiveRun"]:
        """Yield the active MLflow run of this materialisation; `mlflow.log_metrics` and the like write to it.

        `params` (nested mappings become dotted names) and `inputs` (data set name -> DVC's md5) are logged at the
        start. A retry, of the step or of the whole run, finds its run by tags and continues it, unless its params
        differ. At the end the run is FINISHED, FAILED after an exception, KILLED after an interrupt. Runs of killed
        processes are settled first.

        Raises ValueError for a digest longer than 36 characters, TrackerAway if the server does not answer. If it stops
        answering after the work is done, the end of the run is reported later.
        """
        import mlflow

        for name, digest in inputs.items():
            if len(digest) > MAX_DIGEST:
                raise ValueError(
                    f"the digest of {name} has {len(digest)} characters, but MLflow takes {MAX_DIGEST}: {digest}"
                )
        with self._reporting_server_away():
            experiment_id = self.connect()
            deliver(self.resolve_uri())  # messages that an earlier process could not send
            flat = flatten(params)
            identity = identify(context)
            tags = identity | {PROCESS_TAG: describe_process()}
            if self.profile:
                tags[PROFILE_TAG] = self.profile
            self.settle(context.instance)
            run_id = find_run(experiment_id, identity, flat)
            name = "/".join(filter(None, [identity[ASSET_TAG], identity.get(PARTITION_TAG)]))
            run = mlflow.start_run(run_id=run_id, experiment_id=experiment_id, run_name=name, tags=tags)
        status = "FAILED"
        try:
            with self._reporting_server_away():
                if run_id is None:
                    items = list(flat.items())
                    for start in range(0, len(items), PARAMS_PER_CALL):
                        mlflow.log_params(dict(items[start : start + PARAMS_PER_CALL]))
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
        """End the active run. If the server does not answer, its status is reported later: the work is already done, or
        has failed.
        """
        import mlflow

        uri = self.resolve_uri()
        if not find_fault(uri):
            deliver(uri)
            mlflow.end_run(status)
            return
        leave_message(uri, run_id, status=status)
        # mlflow forgets the active run only once it has tried to end it
        patience = {name: os.environ.get(name) for name in AT_ONCE}
        os.environ.update(AT_ONCE)
        with suppress(mlflow.MlflowException):
            mlflow.end_run(status)
        for name, value in patience.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    @contextmanager
    def _reporting_server_away(self) -> Iterator[None]:
        """If MLflow raises an error because its server does not answer, raise TrackerAway instead, which says so on one
        line.
        """
        try:
            yield
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("mlflow", "requests", "urllib3"):
                raise
            if fault := find_fault(self.resolve_uri()):
                raise TrackerAway(fault) from None
            raise

    def child_environment(self, run: "mlflow.ActiveRun") -> dict[str, str]:
        """Return the variables with which a child process logs to `run` (see `emu_dagster.resources.gpu`).

        The child should write through `mlflow.MlflowClient` with the id in MLFLOW_RUN_ID: the fluent functions end the
        run when the child exits.
        """
        return {
            "MLFLOW_TRACKING_URI": self.resolve_uri(),
            "MLFLOW_EXPERIMENT_ID": run.info.experiment_id,
            "MLFLOW_RUN_ID": run.info.run_id,
        }


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as one level of dotted names, with the values as text. A list is one value."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def identify(context: dg.AssetExecutionContext) -> dict[str, str]:
    """Return the tags that identify the materialisation. A re-executed Dagster run counts as the run that it
    repeats."""
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
    """Return the id of the run to continue, or None. MLflow's params cannot change, so other params mean another
    run."""
    for run in _search(experiment_id, identity):
        if run.data.params == dict(params):
            return run.info.run_id
    return None


def _settle(run: dg.DagsterRun, experiment_id: str, instance: dg.DagsterInstance) -> bool:
    """End MLflow's runs of a Dagster run that did not succeed; return False if a process still works on one of them."""
    import mlflow

    root = run.root_run_id or run.run_id
    found = _search(experiment_id, {RUN_TAG: root})
    if any(one.info.status == "RUNNING" and is_alive(one.data.tags.get(PROCESS_TAG, "")) for one in found):
        return False
    for one in found:
        status = "FINISHED" if _is_materialised(one.data.tags[ASSET_TAG], root, instance) else "KILLED"
        if one.info.status == "RUNNING" or (one.info.status == "FINISHED" and status == "KILLED"):
            mlflow.MlflowClient().set_terminated(one.info.run_id, status=status)
    return True


def _is_materialised(asset: str, root: str, instance: dg.DagsterInstance) -> bool:
    """Return whether a Dagster run, or one that repeats it, made `asset`. The catalogue of assets is read, not the
    run's log: a process may be killed when its event is only in the log.
    """
    again = instance.get_runs(dg.RunsFilter(tags={"dagster/root_run_id": root}))
    made_by = {root, *(run.run_id for run in again)}
    made = instance.fetch_materializations(dg.AssetKey.from_user_string(asset), limit=NUM_EXAMINED).records
    return any(record.run_id in made_by for record in made)


def log_inputs(inputs: Mapping[str, str]) -> None:
    """Log data sets to the active run, by name and digest only: DVC has the bytes, under the same md5."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    for name, digest in inputs.items():
        source = CodeDatasetSource(tags={ASSET_TAG: name, DIGEST_TAG: digest})
        mlflow.log_input(MetaDataset(source, name=name, digest=digest), context="input")
