"""Where MLflow's records are: the project's own database, whose paths follow the project's folder, or a server, which
may be unreachable.
"""

import sqlite3
from pathlib import Path

from emu_dagster.machine.processes import one_at_a_time

HEALTH_SECONDS = 3  # within which a server must give any answer; chosen here
EXPERIMENT = "emu"
# The columns of MLflow 3.17's database that hold paths below the project's folder.
ADDRESSES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


class TrackerAway(RuntimeError):
    """MLflow's server does not answer; the message says which server and what to do."""


def local_uri(root: Path) -> str:
    """Return MLflow's tracking URI of the database in the project `root`."""
    return f"sqlite:///{root / 'mlflow' / 'mlflow.db'}"


def find_fault(uri: str) -> str:
    """Return why the tracking server at `uri` cannot be used and what to do, in one sentence; empty if it answers, or
    if `uri` is not the address of a server.
    """
    if not uri.startswith(("http://", "https://")):
        return ""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=HEALTH_SECONDS)  # any answer will do
    except requests.exceptions.SSLError:
        return ""  # it answers; MLflow has its own settings for certificates
    except requests.exceptions.RequestException as error:
        why = (
            f"no answer within {HEALTH_SECONDS} s"
            if isinstance(error, requests.exceptions.Timeout)
            else "no connection"
        )
        return (
            f"MLflow's server at {uri} does not answer ({why}): start it, set MLFLOW_TRACKING_URI to another, or unset "
            "it to record in mlflow/ of this project; finished work is kept"
        )
    return ""


def settle_store(root: Path) -> None:
    """Rewrite the paths in the project's own MLflow database, in one transaction, if the project was moved or copied:
    MLflow stores absolute paths and would continue to write into the old folder. The first process to open a new
    database creates it; others wait.
    """
    from mlflow import MlflowClient

    folder = root / "mlflow"
    database, artifacts = folder / "mlflow.db", folder / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder / ".opening.lock", "opening MLflow's database"):
        if database.is_file():
            move_addresses(database, root)
        client = MlflowClient(local_uri(root))
        if client.get_experiment_by_name(EXPERIMENT) is None:
            client.create_experiment(EXPERIMENT, artifact_location=str(artifacts))


def move_addresses(database: Path, root: Path) -> None:
    """Replace the project's old folder with `root` in every path that begins with it. The old folder is the one in
    which the experiment's artifacts were.
    """
    connection = sqlite3.connect(database, timeout=60)
    try:
        with connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables >= set(ADDRESSES):
                return  # only partly created; MLflow completes it
            row = connection.execute(
                "SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)
            ).fetchone()
            before = row[0].removesuffix("/mlflow/artifacts") if row else str(root)
            if before in (str(root), row and row[0]):
                return
            for table, columns in ADDRESSES.items():
                for column in columns:
                    for start, new in ((f"{before}/", f"{root}/"), (f"file://{before}/", f"file://{root}/")):
                        connection.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                            (new, len(start) + 1, len(start), start),
                        )
    finally:
        connection.close()
