"""MLflow records what happened: one run for each (Dagster run, asset, partition), resumed on a retry.

mlflow is imported inside the functions: it takes seconds, and the code server must load without it.
"""

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from emu_dagster.layout import project_root
from emu_dagster.resources import INTERRUPTS

if TYPE_CHECKING:
    import mlflow

EXPERIMENT = "emu"
# Tags of every run. DIGEST_TAG is for the caller: the md5 of what the asset wrote, known after DVC's record.
RUN_TAG, ASSET_TAG, PARTITION_TAG = "dagster.run_id", "dagster.asset", "dagster.partition"
PROFILE_TAG, DIGEST_TAG, PROCESS_TAG = "emu.profile", "emu.md5", "emu.process"
MAX_DIGEST = 36  # characters: MLflow's limit for a data set's digest, which md5 + ".dir" just fits
PARAMS_A_CALL = 100  # MLflow's limit for one batch


class MlflowTracking(dg.ConfigurableResource):
    """Opens MLflow runs for assets.

    `tracking_uri`: empty takes the variable MLFLOW_TRACKING_URI, and where that is unset SQLite in mlflow/ of
    the project, with the artifacts beside it. `root`: empty takes the project's. `profile`: written as a tag.
    """

    tracking_uri: str = ""
    root: str = ""
    profile: str = ""

    def resolve_uri(self) -> str:
        """The tracking URI in effect; makes mlflow/ when it is the local default."""
        if uri := self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""):
            return uri
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder / 'mlflow.db'}"

    def _folder(self) -> Path:
        return (Path(self.root) if self.root else project_root()) / "mlflow"

    def connect(self) -> str:
        """Point mlflow at the tracking URI and return the experiment's id, making it when it is new."""
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        uri = self.resolve_uri()
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri)
        if before is None:
            # mlflow exports what it was given; it would overrule the default of another root in this process.
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        client = mlflow.MlflowClient()
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            is_local = uri.startswith("sqlite:") and uri.endswith(f"{self._folder() / 'mlflow.db'}")
            location = str(self._folder() / "artifacts") if is_local else None
            with suppress(mlflow.MlflowException):  # another process was faster
                client.create_experiment(EXPERIMENT, artifact_location=location)
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

        Raises ValueError for a digest longer than 36 characters.
        """
        import mlflow

        for name, digest in inputs.items():
            if len(digest) > MAX_DIGEST:
                raise ValueError(f"digest of {name} is {len(digest)} characters, MLflow takes {MAX_DIGEST}: {digest}")
        experiment_id = self.connect()
        flat = flatten(params)
        identity = identify(context)
        tags = identity | {PROCESS_TAG: _this_process()}
        if self.profile:
            tags[PROFILE_TAG] = self.profile
        close_abandoned(experiment_id, identity)
        run_id = find_run(experiment_id, identity, flat)
        name = "/".join(filter(None, [identity[ASSET_TAG], identity.get(PARTITION_TAG)]))
        run = mlflow.start_run(run_id=run_id, experiment_id=experiment_id, run_name=name, tags=tags)
        status = "FAILED"
        try:
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
            mlflow.end_run(status)

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
        if partition == identity.get(PARTITION_TAG) and process and not _is_alive(process):
            mlflow.MlflowClient().set_terminated(run.info.run_id, status="KILLED")


def _this_process() -> str:
    import psutil

    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def _is_alive(process: str) -> bool:
    """Whether the process written by `_this_process` still runs; True for those of other machines."""
    import psutil

    host, pid, created = process.rsplit(":", 2)
    if host != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(created)) < 2
    except psutil.NoSuchProcess:
        return False


def log_inputs(inputs: Mapping[str, str]) -> None:
    """Log data sets by name and digest only to the active run: the bytes are DVC's, found by the same md5."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    for name, digest in inputs.items():
        source = CodeDatasetSource(tags={ASSET_TAG: name, DIGEST_TAG: digest})
        mlflow.log_input(MetaDataset(source, name=name, digest=digest), context="input")
