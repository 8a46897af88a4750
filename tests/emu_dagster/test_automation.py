"""The schedule and the sensor do, once switched on, what they say."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from tests.shards import write_toy_shards

TOP = Path(__file__).parent.parent.parent


@pytest.fixture
def automation(project: Path):
    """defs.automation, with a project whose params are the smoke profile's."""
    shutil.copy(TOP / "profiles" / "smoke.yaml", project / "params.yaml")
    from emu_dagster.defs import automation

    return automation


def put_shards(project: Path, *names: str) -> None:
    raw = project / "data" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    if not (project / "shards").exists():
        write_toy_shards(project, num_images=2)
    for name in names:
        for suffix in (".tar", ".parquet"):
            shutil.copy(project / "shards" / f"00000{suffix}", raw / f"{name}{suffix}")


def evaluate(automation, cursor: str | None) -> dg.SensorResult:
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance, cursor=cursor)
        result = automation.new_raw_shards(context)
    assert isinstance(result, dg.SensorResult)
    return result


def test_the_sensor_asks_for_new_shards_once(automation, project):
    assert not evaluate(automation, None).run_requests
    put_shards(project, "00000", "00001", "00002")
    first = evaluate(automation, None)
    assert len(first.run_requests or ()) == 1
    assert not evaluate(automation, first.cursor).run_requests
    put_shards(project, "00003")
    second = evaluate(automation, first.cursor)
    assert len(second.run_requests or ()) == 1
    seen = {request.run_key for request in first.run_requests or ()}
    assert not seen & {request.run_key for request in second.run_requests or ()}


def test_the_schedule_starts_the_evaluation(automation):
    with dg.build_schedule_context() as context:
        requests = automation.weekly_evaluation.evaluate_tick(context).run_requests
    assert len(requests) == 1
    assert automation.weekly_evaluation.job_name == "evaluation"
