"""Once switched on, the schedule and the sensors do what their descriptions say."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.tags import SENSOR_NAME_TAG
from PIL import Image

from emu_dagster.defs import requests
from emu_dagster.defs.requests import PAUSES
from emu_data.votes.rounds import open_log
from emu_data.votes.vote import Vote
from emu_steps.corpora import read_corpus
from emu_steps.layout import Layout
from emu_steps.params import read_params
from tests.profiles import text_of
from tests.shards import write_toy_shards

TOP = Path(__file__).parent.parent.parent


@pytest.fixture
def automation(project: Path):
    """defs.automation, with a project whose params are the smoke profile's."""
    (project / "params.yaml").write_text(text_of("smoke"))
    from emu_dagster.defs import automation

    return automation


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def put_shards(project: Path, *names: str) -> None:
    raw = project / "data" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    if not (project / "shards").exists():
        write_toy_shards(project, num_images=2)
    for name in names:
        for suffix in (".tar", ".parquet"):
            shutil.copy(project / "shards" / f"00000{suffix}", raw / f"{name}{suffix}")


def filter_all(project: Path) -> None:
    """Write what filtered_corpus leaves for each shard."""
    ledger = project / "data" / "filtered" / "ledger"
    ledger.mkdir(parents=True, exist_ok=True)
    for shard in (project / "data" / "raw").glob("*.tar"):
        (ledger / f"{shard.stem}.parquet").touch()


class Ticks:
    """The ticks of a sensor, one after the other, as the daemon makes them; its runs end as the test decides."""

    def __init__(self, sensor: dg.SensorDefinition, instance: dg.DagsterInstance) -> None:
        self.sensor, self.instance = sensor, instance
        self.cursor: str | None = None

    def __call__(self) -> list[Any]:
        context = dg.build_sensor_context(self.instance, self.cursor, sensor_name=self.sensor.name)
        result = self.sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor, self.skip_reason = result.cursor, result.skip_reason and result.skip_reason.skip_message
        return list(result.run_requests or ())

    def start(self, request: Any) -> dg.DagsterRun:
        tags = {**request.tags, SENSOR_NAME_TAG: self.sensor.name}

        @dg.op
        def nothing() -> None: ...

        @dg.job
        def work() -> None:
            nothing()

        return self.instance.create_run_for_job(work, tags=tags, status=dg.DagsterRunStatus.STARTED)


@pytest.fixture
def ticks(automation, instance) -> Ticks:
    return Ticks(automation.new_raw_shards, instance)


def test_right_after_it_is_switched_on_it_starts_nothing(ticks, project):
    assert not ticks() and not ticks()  # a fresh clone
    put_shards(project, "00000", "00001")
    filter_all(project)
    ticks.cursor = None
    assert not ticks() and not ticks() and ticks.skip_reason == "nothing new"


def test_new_shards_are_one_run_once_they_stopped_growing(ticks, project):
    put_shards(project, "00000")
    filter_all(project)
    put_shards(project, "00001", "00002")
    assert not ticks()
    with (project / "data/raw/00002.tar").open("ab") as file:  # it is still being copied
        file.write(b"\0" * 512)
    assert not ticks()
    (request,) = ticks()
    run = ticks.start(request)
    assert not ticks() and "in progress" in ticks.skip_reason
    put_shards(project, "00003")
    assert not ticks() and not ticks() and "in progress" in ticks.skip_reason  # one run at a time
    filter_all(project)
    ticks.instance.report_run_failed(run)  # whatever the run reports: the shards are in the corpus
    assert not ticks() and not ticks()
    assert ticks.skip_reason == "nothing new"


def test_a_failed_run_is_requested_again_but_not_for_ever(ticks, project, monkeypatch):
    now = [1_000_000_000.0]
    monkeypatch.setattr(requests.time, "time", lambda: now[0])
    put_shards(project, "00000")
    ticks()
    run = None
    for num_runs, pause in enumerate(PAUSES):
        if num_runs:
            assert not ticks() and "next try in" in ticks.skip_reason
        now[0] += pause + 1
        (request,) = ticks()
        assert request.run_key is None
        run = ticks.start(request)
        ticks.instance.report_run_failed(run)
        now[0] = ticks.instance.get_run_record_by_id(run.run_id).end_time
    now[0] += 10 * max(PAUSES)
    assert run is not None
    assert not ticks() and "by hand" in ticks.skip_reason and run.run_id[:8] in ticks.skip_reason
    put_shards(project, "00001")  # other news, other runs
    assert not ticks()
    assert len(ticks()) == 1


def test_the_schedule_starts_the_evaluation(automation):
    with dg.build_schedule_context() as context:
        requests = automation.weekly_evaluation.evaluate_tick(context).run_requests
    assert len(requests) == 1
    assert automation.weekly_evaluation.job_name == "evaluation"


def test_all_have_descriptions_and_are_off(automation):
    from emu_dagster.definitions import defs

    repository = defs.get_repository_def()
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    assert len(jobs) >= 5 and repository.sensor_defs and repository.schedule_defs
    for thing in (*jobs, *repository.sensor_defs, *repository.schedule_defs):
        assert thing.description and len(thing.description) > 30, thing.name
    assert {sensor.default_status for sensor in repository.sensor_defs} == {dg.DefaultSensorStatus.STOPPED}
    assert {schedule.default_status for schedule in repository.schedule_defs} == {dg.DefaultScheduleStatus.STOPPED}


def test_no_job_needs_partitions(automation):
    from emu_dagster.definitions import defs

    repository = defs.get_repository_def()
    assert not [job.name for job in repository.get_all_jobs() if job.partitions_def is not None]


def test_new_pictures_in_the_source_are_one_run_until_they_are_registered(ticks, project, instance):
    source = project / "pictures"
    source.mkdir()

    def put(name: str) -> None:
        Image.new("RGB", (32, 32), "red").save(source / f"{name}.png")
        (source / f"{name}.txt").write_text("a red square")

    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("source: packages ", f"source: folder\n  path: {source} "))
    layout = Layout(project)
    section = read_params(project / "params.yaml").raw_corpus
    put("one")
    read_corpus(section, layout)
    filter_all(project)
    for ref in layout.raw.glob("*.ref"):
        (layout.filtered / "ledger" / f"{ref.stem}.parquet").touch()
    assert ticks() == [] == ticks()
    put("two")
    assert ticks() == []  # only after it has stopped growing
    (request,) = ticks()
    ticks.start(request)
    assert ticks() == []  # while that run is in progress
    read_corpus(section, layout)
    assert ticks() == [] and ticks.skip_reason == "nothing new"


def test_new_votes_of_people_start_one_run_of_what_needs_no_training(automation, project, instance):
    ticks = Ticks(automation.new_votes, instance)
    log = open_log(Layout(project).votes("specialist"))
    log.append([Vote("specialist", "ada", "person", "000000001", "keep")])
    assert ticks() == [] == ticks()  # no round was recorded yet: nothing waits for it
    materialization = dg.AssetMaterialization("specialist_votes", tags={"dagster/data_version": log.head()})
    instance.report_runless_asset_event(materialization)
    assert ticks() == [] == ticks()
    log.append([Vote("specialist", "bob", "person", "000000001", "drop")])
    assert ticks() == []
    (request,) = ticks()
    assert [key.to_user_string() for key in request.asset_selection] == ["specialist_votes", "curated_set"]
    assert "quality_tuned" not in {asset for assets in automation.AFTER_VOTES.values() for asset in assets}
