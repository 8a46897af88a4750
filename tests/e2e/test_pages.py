"""The pages: `emu up` serves Dagster's, MLflow's and the reports, and stops all of them; the reports look right in a
browser."""

import base64
import json
import re
import urllib.request
from collections import deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import urldefrag, urlencode, urljoin, urlsplit

import pytest

from tests.e2e.pages import CHROMIUM, QUIET_FLAGS, serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def pages(demo):
    """`emu up` on free ports over the finished project."""
    project, _ = demo
    with serve(project) as pages:
        yield pages


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_FLAGS)
        yield chromium
        chromium.close()


def test_all_pages_answer(pages):
    for address in (pages.dagster, pages.mlflow, pages.reports):
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert answer.status == 200


def test_runs_of_commands_belong_to_the_code_location(pages):
    """Without this origin, Dagster's timeline does not show a run."""
    runs = pages.runs()
    assert len(runs) >= 17 and {run["status"] for run in runs} == {"SUCCESS"}
    assert {run["repositoryOrigin"]["repositoryLocationName"] for run in runs} == {"emu"}


def test_every_link_and_picture_of_every_report_exists(pages):
    """Followed from the first page, as a browser does; and the text of the pages is written for people."""
    from tests.emu_reports.test_reports import Links, faults_of_prose

    waiting, seen = deque([f"{pages.reports}/index.html"]), set[str]()
    while waiting:
        address = waiting.popleft()
        if address in seen:
            continue
        seen.add(address)
        with urllib.request.urlopen(address, timeout=20) as answer:  # an HTTPError names what is missing
            body = answer.read()
        if address.endswith(".html"):
            assert not faults_of_prose(body.decode()), address
            links = [urldefrag(urljoin(address, link)).url for link in Links(body.decode()).links]
            waiting += [link for link in links if link.startswith(pages.reports)]
    kinds = [address.rpartition(".")[2] for address in seen]
    assert kinds.count("html") >= 7 and kinds.count("png") >= 60


def artifacts(client: Any, run_id: str, path: str | None = None) -> Iterator[str]:
    for found in client.list_artifacts(run_id, path):
        yield from artifacts(client, run_id, found.path) if found.is_dir else [found.path]


@pytest.fixture(scope="module")
def tracked(pages):
    """Return MLflow's client, and its latest run of each asset."""
    import mlflow

    client = mlflow.MlflowClient(pages.mlflow)
    found: dict[str, Any] = {}
    for run in client.search_runs([one.experiment_id for one in client.search_experiments()]):  # the newest first
        found.setdefault(run.data.tags.get("dagster.asset", ""), run)
    return client, found


def test_every_report_in_mlflow_has_its_pictures_and_says_when_and_from_which_commit(demo, pages, tracked):
    from tests.emu_reports.test_reports import Links, faults_of_prose

    client, runs = tracked
    reports = demo[0].root / "data" / "reports"
    copied = set()
    for asset, run in runs.items():
        for path in artifacts(client, run.info.run_id):
            if not path.startswith("reports/"):
                continue
            query = urlencode({"path": path, "run_uuid": run.info.run_id})
            with urllib.request.urlopen(f"{pages.mlflow}/get-artifact?{query}", timeout=20) as answer:
                html = answer.read().decode()
            page, found = reports / path.removeprefix("reports/"), Links(html)
            before = Links(page.read_text(encoding="utf-8")).links
            for link, original in zip(found.links, before, strict=True):
                if original.endswith(".png"):
                    assert base64.b64decode(link.partition(",")[2]) == (page.parent / original).read_bytes(), original
                elif not original.startswith("#"):
                    assert (reports / urlsplit(link).path.lstrip("/")).is_file() and link.startswith("http"), link
            assert run.data.tags["emu.commit"] in found.text and run.data.tags["emu.md5"] in found.text
            assert re.search(r"begun 20\d\d-\d\d-\d\d \d\d:\d\d UTC", found.text) and not faults_of_prose(html)
            copied.add((asset, path))
    pages_on_disk = {page.relative_to(reports).as_posix() for page in reports.rglob("index.html")}
    assert {path.removeprefix("reports/") for _, path in copied} == pages_on_disk


def test_a_curve_in_mlflow_is_that_of_the_trainings_log(demo, tracked):
    client, runs = tracked
    for asset in ("autoencoder", "pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned"):
        lines = (demo[0].root / "data" / "models" / asset / "metrics.jsonl").read_text().splitlines()
        log = {line["step"]: line for line in map(json.loads, lines)}
        assert len(log) == max(log)  # one point per step
        for name in ("loss", "val_loss"):
            sent = client.get_metric_history(runs[asset].info.run_id, f"{asset}/{name}")
            assert {one.step: one.value for one in sent} == {step: v[name] for step, v in log.items() if name in v}


@pytest.mark.browser
def test_mlflow_shows_a_report_with_its_pictures(pages, tracked, browser):
    """In MLflow's own viewer, which shows the file as a blob."""
    client, runs = tracked
    run = runs["automatic_report"].info
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    address = f"{pages.mlflow}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts"
    page.goto(f"{address}/reports/automatic_report/index.html", timeout=60_000)
    frame = page.frame_locator("iframe")
    frame.get_by_text("Is it a copy").first.wait_for(timeout=60_000)
    for picture in frame.locator(".plate img").all()[:8]:
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("async i => { await i.decode(); return i.naturalWidth }") > 0


@pytest.mark.browser
def test_dagster_shows_the_graph(pages, browser):
    page = browser.new_page()
    groups = ",".join(f"global@global:{group}" for group in ("corpus", "quality_tuning", "registry"))
    page.goto(f"{pages.dagster}/asset-groups?expanded={groups}", timeout=60_000)  # groups are collapsed at first
    for name in ("raw_corpus", "quality_tuned", "registered_model"):
        page.get_by_text(name, exact=True).first.wait_for(timeout=60_000, state="attached")


@pytest.mark.browser
def test_an_assets_page_shows_its_pictures_and_leads_to_its_run_and_report(demo, pages, browser):
    project, _ = demo
    project.must("emu", "materialize", "appeal_report")  # under the ports of these pages
    page = browser.new_page(viewport={"width": 1400, "height": 1200})
    page.goto(f"{pages.dagster}/assets/appeal_report", timeout=60_000)
    picture = page.locator("img[src*='get-artifact']").first
    picture.wait_for(timeout=60_000)
    page.wait_for_function("[...document.images].filter(i => i.src.includes('get-artifact')).every(i => i.complete)")
    assert page.evaluate("[...document.images].filter(i => i.src.includes('get-artifact')).every(i => i.naturalWidth)")
    assert not page.get_by_text("[Show Markdown]").count()
    assert page.get_by_text("this run in MLflow").count() == 1
    (report,) = [
        link for link in page.evaluate("[...document.links].map(a => a.href)") if "appeal_report/index" in link
    ][:1]
    page.goto(report, timeout=20_000)
    page.get_by_text("Verdict").first.wait_for(timeout=20_000)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 420])
def test_the_index_is_complete(demo, browser, width):
    """Every picture loads, no console error, nothing wider than the window."""
    project, _ = demo
    index = project.root / "data" / "reports" / "index.html"
    page = browser.new_page(viewport={"width": width, "height": 900})
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(index.as_uri())
    assert not errors
    page.evaluate(
        "[...document.images].forEach(i => i.loading = 'eager')"
    )  # pictures further down load only when they come into view
    page.wait_for_function("[...document.images].every(i => i.complete)")
    broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
    assert not broken
    assert page.evaluate("document.images.length") >= 32
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    text = page.inner_text("body").lower()
    assert "toy scale" in text and "not people" in text
