"""Messages from a training to MLflow: written to a folder at once, sent by a thread, and deleted once they have
arrived.

So a training never waits for MLflow's server and does not fail with it. What could not be sent is sent by the next
process that reaches the server: at the end of the asset or at the next start. (The numbers are also in the training's
metrics.jsonl.)
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
GATHER_SECONDS = 1.0  # whose metrics are sent as one message, because a step may take milliseconds; chosen here
BATCH = 1000  # metrics that MLflow accepts per call
RETRY_SECONDS = 20.0  # between a failure and the next attempt; chosen here
CLOSE_SECONDS = 5.0  # for the last messages when a training ends; the asset sends the rest; chosen here
# MLflow's error codes for a message that it will never accept, for example for a deleted run.
HOPELESS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "BAD_REQUEST"}


def outbox_folder() -> Path:
    """Return the folder of messages to MLflow that have not been sent yet."""
    return Layout(project_root()).cache / "outbox"


def leave_message(uri: str, run_id: str, **content: Any) -> None:
    """Put a message for a run into the outbox: metrics=[[key, value, ms, step], …], status=… or image=…, key=…, step=….

    Never raises, because a training must not fail over its reporting.
    """
    where = "local" if uri == local_uri(project_root()) else uri
    try:
        with atomic_file(outbox_folder() / f"{time.time_ns()}-{os.getpid()}.json") as partial:
            partial.write_text(json.dumps({"uri": where, "run_id": run_id, **content}))
    except OSError as error:
        logger.warning("a message to MLflow could not be kept and is lost: %s", error)


def deliver(uri: str) -> bool:
    """Send the messages in the outbox that are for the tracking server or database at `uri`, in order; return False if
    it does not accept them. Messages for others stay.
    """
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
                    continue  # another process has sent it
                message = json.loads(path.read_text())
                if message["uri"] != where:
                    continue
                try:
                    _send(client, message)
                except MlflowException as error:
                    if error.error_code not in HOPELESS:
                        raise
                    logger.warning("MLflow rejects a message for run %s: %s", message["run_id"], error.message)
                path.unlink(missing_ok=True)
    except Timeout:
        return True  # another process is sending
    except Exception as error:  # whatever MLflow's client raises; the messages stay
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
    """This process's messages to one run, sent by a thread in the background."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._gathered: list[list[Any]] = []
        self._left = float("-inf")  # when metrics were last put into a message; the first are put at once
        self._news, self._ends = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put_metrics(self, prefix: str, step: int, metrics: dict[str, float]) -> None:
        """Report metrics of a step as PREFIX/name. Metrics of about one second go into one message, so a kill loses at
        most a second of a curve.
        """
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
        """Leave a picture of a step for the run, under `key`, and wake the thread that sends it."""
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        image = base64.b64encode(buffer.getvalue()).decode()
        leave_message(self.uri, self.run_id, image=image, key=key, step=step)
        self._news.set()

    def close(self) -> None:
        """Give the thread CLOSE_SECONDS to send the remaining messages."""
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
