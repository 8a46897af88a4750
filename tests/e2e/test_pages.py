"""The pages: `emu up` serves Dagster's and MLflow's and stops both; the reports look right in a real browser."""

import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or "chromium"
QUIET_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def pages(demo):
    """`emu up` on free ports; yields the two addresses, and checks that Ctrl-C ends everything."""
    project, _ = demo
    ports = [free_port(), free_port()]
    process = subprocess.Popen(
        ["emu", "up", "--dagster-port", str(ports[0]), "--mlflow-port", str(ports[1])],
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    printed = ""
    deadline = time.monotonic() + 150
    while "Ctrl-C" not in printed and time.monotonic() < deadline:
        line = process.stdout.readline()
        assert line, f"emu up ended: {printed}"
        printed += line
    yield re.findall(r"http://127\.0\.0\.1:\d+", printed)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_both_pages_answer(pages):
    assert len(pages) == 2
    for address in pages:
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert answer.status == 200


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_FLAGS)
        yield chromium
        chromium.close()


@pytest.mark.browser
def test_dagster_shows_the_graph(pages, browser):
    page = browser.new_page()
    groups = ",".join(f"global@global:{group}" for group in ("corpus", "quality_tuning", "registry"))
    page.goto(f"{pages[0]}/asset-groups?expanded={groups}", timeout=60_000)  # groups are closed at first
    for name in ("raw_corpus", "quality_tuned", "registered_model"):
        page.get_by_text(name, exact=True).first.wait_for(timeout=60_000, state="attached")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 420])
def test_the_index_is_whole(demo, browser, width):
    """Every picture loads, no console error, nothing wider than the window, every link leads somewhere."""
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
    links = page.evaluate("[...document.links].map(a => a.getAttribute('href'))")
    for link in links:
        if not link.startswith(("http", "#")):
            assert (index.parent / link.split("#")[0]).exists(), link
