"""Where MLflow's records are: the project's own database, kept to the folder it lies in, or a server, maybe away."""

import sqlite3
from pathlib import Path

from emu_dagster.machine.processes import one_at_a_time

HEALTH_SECONDS = 3  # for a server to say anything at all; chosen here
EXPERIMENT = "emu"
# What of MLflow 3.17's database holds addresses below the project's folder.
ADDRESSES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


class TrackerAway(RuntimeError):
    """MLflow's server does not answer; the message says which and what to do."""


def local_uri(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow' / 'mlflow.db'}"


def find_fault(uri: str) -> str:
    """Why the tracking server at `uri` cannot be used, in one sentence with what to do; empty where it answers, or
    where `uri` is no server's."""
    if not uri.startswith(("http://", "https://")):
        return ""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=HEALTH_SECONDS)  # whatever it says, it answers
    except requests.exceptions.SSLError:
        return ""  # it does; MLflow has settings of its own for certificates
    except requests.exceptions.RequestException as error:
        why = f"not within {HEALTH_SECONDS} s" if isinstance(error, requests.exceptions.Timeout) else "nobody listens"
        return (
            f"MLflow's server at {uri} does not answer ({why}): start it, set MLFLOW_TRACKING_URI to another, or unset "
            "it to record in mlflow/ of this project; what has been made stays"
        )
    return ""


def settle_store(root: Path) -> None:
    """Rewrites the addresses in the project's own MLflow database, in one transaction, where the project was moved or
    copied since: MLflow keeps absolute ones, and would write on into the old folder. The first process to open a new
    database makes it, the others wait.
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
    """Makes `root` the start of every address that begins with the folder where the experiment's artifacts lay."""
    connection = sqlite3.connect(database, timeout=60)
    try:
        with connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables >= set(ADDRESSES):
                return  # not made to the end; MLflow does that
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
