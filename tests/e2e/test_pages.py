"""The pages: `emu up` serves Dagster's, MLflow's and the reports and stops all; the reports look right in a browser."""

import urllib.request
from collections import deque
from urllib.parse import urldefrag, urljoin

import pytest

from tests.e2e.pages import CHROMIUM, QUIET_FLAGS, serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]


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


def test_the_commands_runs_are_those_of_the_code_location(pages):
    """Dagster's timeline shows no run without this origin."""
    runs = pages.runs()
    assert len(runs) >= 17 and {run["status"] for run in runs} == {"SUCCESS"}
    assert {run["repositoryOrigin"]["repositoryLocationName"] for run in runs} == {"emu"}


def test_every_link_and_picture_of_every_report_exists(pages):
    """From the first page on, as a browser follows them."""
    from tests.emu_reports.test_reports import Links

    waiting, seen = deque([f"{pages.reports}/index.html"]), set[str]()
    while waiting:
        address = waiting.popleft()
        if address in seen:
            continue
        seen.add(address)
        with urllib.request.urlopen(address, timeout=20) as answer:  # an HTTPError names what is missing
            body = answer.read()
        if address.endswith(".html"):
            links = [urldefrag(urljoin(address, link)).url for link in Links(body.decode()).links]
            waiting += [link for link in links if link.startswith(pages.reports)]
    kinds = [address.rpartition(".")[2] for address in seen]
    assert kinds.count("html") >= 7 and kinds.count("png") >= 60


@pytest.mark.browser
def test_dagster_shows_the_graph(pages, browser):
    page = browser.new_page()
    groups = ",".join(f"global@global:{group}" for group in ("corpus", "quality_tuning", "registry"))
    page.goto(f"{pages.dagster}/asset-groups?expanded={groups}", timeout=60_000)  # groups are closed at first
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
def test_the_index_is_whole(demo, browser, width):
    """Every picture loads, no console error, nothing wider than the window."""
    project, _ = demo
    index = project.root / "data" / "reports" / "index.html"
    page = browser.new_page(viewport={"width": width, "height": 900})
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(index.as_uri())
    assert not errors
    page.evaluate("[...document.images].forEach(i => i.loading = 'eager')")  # those further down wait to be seen
    page.wait_for_function("[...document.images].every(i => i.complete)")
    broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
    assert not broken
    assert page.evaluate("document.images.length") >= 32
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    text = page.inner_text("body").lower()
    assert "toy scale" in text and "not people" in text
