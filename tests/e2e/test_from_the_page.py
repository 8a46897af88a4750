"""The graph run from Dagster's own page: by a click, a job, the daemon. Each is one run; all servers are real."""

import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from emu_data.samples import Sample, make_key
from emu_data.shards import write_shard
from tests.e2e.conftest import Project, make_project
from tests.e2e.pages import CHROMIUM, QUIET_FLAGS, REPOSITORY, Pages, serve
from tests.shards import encode

# they take minutes each, after a click that runs everything in six: pytest -m campaign tests/e2e/test_from_the_page.py
pytestmark = [pytest.mark.campaign, pytest.mark.browser, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project like a fresh clone: without data, and nothing was ever materialised."""
    project = make_project(tmp_path_factory.mktemp("page") / "project")
    project.must("emu", "profile", "smoke")
    return project


@pytest.fixture(scope="module")
def pages(project: Project):
    with serve(project) as pages:
        yield pages


@pytest.fixture(scope="module")
def clicked(pages: Pages) -> str:
    """Return the run that one click on "Materialize all" starts, after it has ended."""
    click(pages, "/asset-groups", "Materialize all")
    (run,) = started(pages, 1)
    assert pages.wait(run, 1200) == "SUCCESS", "\n".join(pages.messages(run)[-40:])
    return run


def click(pages: Pages, path: str, button: str) -> None:
    """Click a button of Dagster's page in Chromium, and nothing else."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{pages.dagster}{path}", timeout=60_000)
        target = page.get_by_role("button", name=button)
        target.wait_for(timeout=60_000)
        page.wait_for_function(
            "name => [...document.querySelectorAll('button')].some(b => b.innerText.includes(name) && !b.disabled)",
            arg=button,
        )
        before = len(pages.runs())
        target.click()
        started(pages, before + 1)
        browser.close()


def started(pages: Pages, num_runs: int, seconds: float = 60) -> list[str]:
    """Return the ids of all runs, the latest first, as soon as there are `num`."""
    deadline = time.monotonic() + seconds
    while len(runs := pages.runs()) < num_runs and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(runs) >= num_runs
    return [run["runId"] for run in runs]


def test_one_click_on_a_fresh_clone_is_one_run_of_everything(project: Project, pages: Pages, clicked: str):
    assert [run["runId"] for run in pages.runs()] == [clicked]
    assert (project.root / "data/reports/index.html").is_file()
    assert (project.root / "data/registered_model.json").is_file()
    printed = project.must("emu", "materialize")  # the command sees what the page made
    assert "nothing was done" in printed, printed


def test_its_page_shows_progress_in_numbers(pages: Pages, clicked: str):
    reported = "\n".join(pages.messages(clicked))
    assert re.search(r"pretrained_low: step \d+ of 6, loss \d\.\d+, val loss \d\.\d+", reported), reported


@pytest.mark.parametrize(
    "job",
    [
        "filter_shards",
        "data_half",
        "model_half",
        "whole_graph",
    ],
)
def test_a_job_is_one_run(pages: Pages, clicked: str, job: str):
    before = len(pages.runs())
    run = pages.launch(job)
    assert pages.wait(run, 1200) == "SUCCESS", "\n".join(pages.messages(run)[-40:])
    assert len(pages.runs()) == before + 1


def test_the_launch_button_of_a_job_is_one_run(pages: Pages, clicked: str):
    before = len(pages.runs())
    click(pages, "/locations/emu/jobs/evaluation/playground", "Launch Run")
    run = started(pages, before + 1)[0]
    assert pages.wait(run) == "SUCCESS", "\n".join(pages.messages(run)[-40:])
    assert len(pages.runs()) == before + 1 and pages.runs()[0]["jobName"] == "evaluation"


def test_a_second_run_waits_for_the_first(pages: Pages, clicked: str):
    launched = [pages.launch("evaluation"), pages.launch("evaluation")]
    assert [pages.wait(run) for run in launched] == ["SUCCESS", "SUCCESS"]
    first, second = sorted((run for run in pages.runs() if run["runId"] in launched), key=lambda run: run["startTime"])
    assert second["startTime"] >= first["endTime"]


SENSOR = {**REPOSITORY, "sensorName": "new_raw_shards"}
LOOK = """query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor { sensorState { id
    ticks(limit: 20) { status skipReason } } } } }"""


def switch_on(pages: Pages) -> None:
    switch = "mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }"
    assert pages.ask(switch, s=SENSOR)["startSensor"]["__typename"] == "Sensor"


def switch_off(pages: Pages) -> None:
    state = pages.ask(LOOK, s=SENSOR)["sensorOrError"]["sensorState"]
    pages.ask("mutation($id: String!) { stopSensor(id: $id) { __typename } }", id=state["id"])


def test_switched_on_with_nothing_new_the_sensor_starts_nothing(pages: Pages, clicked: str):
    before = len(pages.runs())
    switch_on(pages)
    deadline, ticks = time.monotonic() + 200, []
    while len(ticks) < 2 and time.monotonic() < deadline:
        time.sleep(2)
        state = pages.ask(LOOK, s=SENSOR)["sensorOrError"]["sensorState"]
        ticks = [tick for tick in state["ticks"] if tick["status"] != "STARTED"]
    switch_off(pages)
    assert len(ticks) >= 2
    assert {(tick["status"], tick["skipReason"]) for tick in ticks} == {("SKIPPED", "nothing new")}
    assert len(pages.runs()) == before


def drop_shard(project: Project, keys_of: int) -> None:
    """Put shard 00009 into data/raw, with the keys of shard `keys_of`."""
    samples = [
        Sample(make_key(keys_of, n), encode(Image.new("RGB", (96, 96), colour)), f"a {colour} square")
        for n, colour in enumerate(("red", "blue"))
    ]
    rows = [{"key": s.key, "caption": s.caption, "status": "success", "width": 96, "height": 96} for s in samples]
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder), 9, samples, pd.DataFrame(rows))
        for file in Path(folder).iterdir():
            shutil.copy(file, project.root / "data" / "raw")


def test_a_shard_that_is_added_reaches_the_filtered_corpus_even_after_a_failed_run(
    project: Project, pages: Pages, clicked: str
):
    before = len(pages.runs())
    drop_shard(project, keys_of=0)  # keys that exist already, so the run fails
    switch_on(pages)
    failed = started(pages, before + 1, 150)[0]
    assert pages.wait(failed) == "FAILURE"
    drop_shard(project, keys_of=9)
    mended = started(pages, before + 2, 150)[0]
    assert pages.wait(mended) == "SUCCESS", "\n".join(pages.messages(mended)[-40:])
    switch_off(pages)
    assert len(pages.runs()) == before + 2
    ledger = pd.read_parquet(project.root / "data/filtered/ledger/00009.parquet")
    assert len(ledger) == 2


def change(project: Project, section: str, **values: object) -> None:
    path = project.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params[section] |= values
    path.write_text(yaml.safe_dump(params))


def statuses(pages: Pages) -> dict[str, str]:
    nodes = pages.ask("{ assetNodes { assetKey { path } staleStatus } }")["assetNodes"]
    return {"/".join(node["assetKey"]["path"]): node["staleStatus"] for node in nodes}


def becomes(pages: Pages, asset: str, status: str) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if statuses(pages)[asset] == status:
            return True
        time.sleep(1)
    return False


def test_the_page_notices_a_changed_params_yaml_without_a_click(project: Project, pages: Pages, clicked: str):
    before = (project.root / "params.yaml").read_bytes()
    assert becomes(pages, "appeal_report", "FRESH")
    status = statuses(pages)  # not all are fresh: a shard was added
    change(project, "appeal_report", num_bootstrap=123)
    assert becomes(pages, "appeal_report", "STALE")
    changed = {key for key, now in statuses(pages).items() if now != status[key]}
    assert changed <= {"appeal_report", "registered_model", "front_page"}  # which read it
    (project.root / "params.yaml").write_bytes(before)
    assert becomes(pages, "appeal_report", "FRESH")


def test_a_training_saves_when_the_pages_are_stopped(project: Project, clicked: str, pages: Pages):
    """Ctrl-C with a training in progress and Dagster's page open in a browser."""
    from playwright.sync_api import sync_playwright

    change(project, "quality_tuned", num_steps=15_000, validate_every=20)
    assert becomes(pages, "quality_tuned", "STALE")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_FLAGS)
        browser.new_page().goto(f"{pages.dagster}/runs", timeout=60_000)
        run = pages.launch("model_half")
        deadline = time.monotonic() + 600
        while not any("quality_tuned: step" in message for message in pages.messages(run)):
            assert time.monotonic() < deadline, "\n".join(pages.messages(run)[-40:])
            time.sleep(2)
        pages.process.send_signal(signal.SIGINT)
        assert pages.process.wait(120) == 0
        browser.close()
    assert pages.process.stdout is not None
    assert "waiting for 1 run(s)" in pages.process.stdout.read()
    states = list((project.root / "data").rglob("states/*/meta.json"))
    assert any("quality_tuned" in str(Path(path)) for path in states), states
    script = f"import dagster as dg; print(dg.DagsterInstance.get().get_run_by_id('{run}').status.value)"
    assert project.must("python", "-c", script).strip() == "CANCELED"
