"""What the studio's tests share."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.pages import CHROMIUM, QUIET_FLAGS
from tests.emu_studio import postgres


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Server]:
    """One PostgreSQL for all tests that kill none."""
    with postgres.running() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=[postgres.needed, pytest.mark.slow])])
def url(request: pytest.FixtureRequest) -> str | None:
    """Of an empty database on each kind of server; None stands for SQLite in the data folder."""
    return None if request.param == "sqlite" else request.getfixturevalue("cluster").new_database()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page in a browser that nobody used before. Errors of its scripts fail the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []
