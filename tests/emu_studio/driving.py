"""What tests do with every page of the studio in a browser, and what they look up after it."""

from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from emu_data.votes.vote import Vote
from emu_studio.ballots import read_votes, verify_chain
from emu_studio.database import open_database
from emu_studio.rounds import find_round
from tests.emu_studio.served import Served

PATIENCE = 60_000  # ms: the machine may do much else


def enter(page: Any, served: Served, role: str, shown: str, name: str = "Anna") -> None:
    """Come in by a new personal link, agree, and wait until `shown`, a selector, is there."""
    page.set_default_timeout(PATIENCE)
    page.goto(served.link(name, role))
    page.get_by_role("link", name="Begin").click()
    page.get_by_role("button", name="I agree").click()
    page.locator(shown).first.wait_for()


def saved(page: Any) -> None:
    expect(page.locator("#saved")).to_have_text("saved", timeout=PATIENCE)


def assert_no_violations(page: Any) -> None:
    """axe-core finds nothing on the page as it is now."""
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []


def votes_of(served: Served, name: str) -> list[Vote]:
    """The votes of a round, whose chain is whole."""
    database = open_database(served.url or served.data / "studio" / "studio.db")
    round_id = find_round(database, name).id
    assert verify_chain(database, round_id) == []
    votes = read_votes(database, round_id)
    database.close()
    return votes
