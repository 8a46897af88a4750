"""What a training reports to MLflow step by step: every point arrives, in few messages, whatever the pace."""

import json
from pathlib import Path

import mlflow
import pytest

from emu_dagster.resources import outbox
from emu_dagster.resources.mlflow import MlflowTracking


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMU_ROOT", str(tmp_path))
    return tmp_path


def test_fast_steps_are_few_messages_and_all_arrive(project: Path, monkeypatch: pytest.MonkeyPatch):
    tracking = MlflowTracking()
    tracking.connect()
    with mlflow.start_run() as run:
        pass
    with monkeypatch.context() as held:
        held.setattr(outbox, "deliver", lambda uri: True)
        box = outbox.Outbox(tracking.resolve_uri(), run.info.run_id)
        for step in range(1, 1201):  # with two metrics more than MLflow takes per call
            box.put_metrics("net", step, {"loss": 1.0 / step, "learning_rate": 0.1})
        box.close()
    messages = [json.loads(path.read_text()) for path in outbox.outbox_folder().glob("[0-9]*.json")]
    assert sum(len(message["metrics"]) for message in messages) == 2400 and len(messages) < 20
    assert outbox.deliver(tracking.resolve_uri())
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "net/loss")
    assert {point.step: point.value for point in history} == {step: 1.0 / step for step in range(1, 1201)}
