"""What a training tells MLflow, by way of a folder: written there at once, sent by a thread, removed when it arrived.

So a training never waits for its tracker and outlives it: what could not be sent is sent by the next process that finds
the tracker answering, at the asset's end or the next start. (The numbers are also in the training's metrics.jsonl.)
"""

import atexit
import base64
import io
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from emu_dagster.resources.mlflow_store import local_uri
from emu_data.files import atomic_file
from emu_steps.layout import Layout, project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL import Image

logger = logging.getLogger(__name__)
GATHER_SECONDS = 1.0  # for which metrics are gathered into one message; chosen here: a step may take milliseconds
BATCH = 1000  # metrics that MLflow takes in one call
RETRY_SECONDS = 20.0  # after a failure, until the tracker is tried again; chosen here
CLOSE_SECONDS = 5.0  # for the last messages when a training ends; what is left is sent by the asset
# MLflow's codes for a message that it will never take, such as for a run that somebody has deleted.
HOPELESS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "BAD_REQUEST"}


def outbox_folder() -> Path:
    return Layout(project_root()).cache / "outbox"


def leave_message(uri: str, run_id: str, **content: Any) -> None:
    """Puts a message to a run into the outbox: metrics=[[key, value, ms, step], …], status=… or image=…, key=…, step=….

    Never raises: telling is not worth a training.
    """
    where = "local" if uri == local_uri(project_root()) else uri
    try:
        with atomic_file(outbox_folder() / f"{time.time_ns()}-{os.getpid()}.json") as partial:
            partial.write_text(json.dumps({"uri": where, "run_id": run_id, **content}))
    except OSError as error:
        logger.warning("not told to MLflow: %s", error)


def deliver(uri: str) -> bool:
    """Sends the messages in the outbox that are for the tracker at `uri`, in their order; False where it does not take
    them. Those of other trackers wait."""
    folder = outbox_folder()
    if not folder.is_dir() or not (waiting := sorted(folder.glob("[0-9]*.json"))):
        return True
    from mlflow import MlflowClient, MlflowException

    where = "local" if uri == local_uri(project_root()) else uri
    try:
        with FileLock(folder / ".lock", timeout=0):
            client = MlflowClient(uri)
            for path in waiting:
                if not path.is_file():
                    continue  # another process was here
                message = json.loads(path.read_text())
                if message["uri"] != where:
                    continue
                try:
                    _send(client, message)
                except MlflowException as error:
                    if error.error_code not in HOPELESS:
                        raise
                    logger.warning("MLflow takes no message to run %s: %s", message["run_id"], error.message)
                path.unlink(missing_ok=True)
    except Timeout:
        return True  # another process is at it
    except Exception as error:  # whatever a tracker's client raises; the messages stay
        logger.debug("messages to MLflow wait: %s", error)
        return False
    return True


def _send(client: "MlflowClient", message: dict[str, Any]) -> None:
    from mlflow.entities import Metric
    from PIL import Image

    run_id = message["run_id"]
    if "metrics" in message:
        metrics = [Metric(*values) for values in message["metrics"]]
        for start in range(0, len(metrics), BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + BATCH])
    if "image" in message:
        picture = Image.open(io.BytesIO(base64.b64decode(message["image"])))
        client.log_image(run_id, picture, key=message["key"], step=message["step"], synchronous=True)
    if "status" in message:
        client.set_terminated(run_id, message["status"])


class Outbox:
    """The messages of this process to one run, sent by a thread while it works on."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._gathered: list[list[Any]] = []
        self._left = float("-inf")  # when metrics left last; the first do at once
        self._news, self._ends = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put_metrics(self, prefix: str, step: int, metrics: dict[str, float]) -> None:
        """Metrics of a step as PREFIX/name. They leave together with those of the steps of the same second, so that a
        kill costs a second of a curve."""
        now = int(time.time() * 1000)
        self._gathered += [[f"{prefix}/{name}", float(value), now, step] for name, value in metrics.items()]
        if time.monotonic() - self._left >= GATHER_SECONDS:
            self._leave_metrics()

    def _leave_metrics(self) -> None:
        if self._gathered:
            leave_message(self.uri, self.run_id, metrics=self._gathered)
        self._gathered, self._left = [], time.monotonic()
        self._news.set()

    def put_picture(self, key: str, step: int, picture: "Image.Image") -> None:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        image = base64.b64encode(buffer.getvalue()).decode()
        leave_message(self.uri, self.run_id, image=image, key=key, step=step)
        self._news.set()

    def close(self) -> None:
        """Gives the thread CLOSE_SECONDS to send what is left."""
        self._leave_metrics()
        self._ends.set()
        self._news.set()
        self._thread.join(CLOSE_SECONDS)

    def _deliver(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            arrived = deliver(self.uri)
            if self._ends.is_set():
                return
            if not arrived:
                self._ends.wait(RETRY_SECONDS)
                self._news.set()
