"""Choosing pictures in a real browser: contact sheets and single pictures, by keys; nothing is lost or doubled."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.emu_studio.driving import assert_no_violations, enter, saved, votes_of
from tests.emu_studio.served import open_pictures, serving

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_contact_sheet_by_keys_alone(tmp_path: Path, page: Any) -> None:
    open_pictures(tmp_path / "data", "generalist", 20, sheet_size=8)
    with serving(tmp_path / "data") as served:
        page.goto(served.link("Anna", "generalist"))
        assert_no_violations(page)
        page.get_by_role("link", name="Begin").click()
        assert_no_violations(page)
        page.get_by_role("button", name="I agree").click()
        page.locator(".tile").nth(7).wait_for()
        assert_no_violations(page)
        page.keyboard.press("w")
        page.keyboard.press("e")
        page.keyboard.press("e")  # taken back
        page.keyboard.press("!")
        page.keyboard.press("r")
        first = page.locator(".tile img").first.get_attribute("src")
        page.keyboard.press("Enter")
        expect(page.locator(".tile img").first).not_to_have_attribute("src", first)
        page.keyboard.press("Backspace")  # the sheet before, as it was left
        assert page.locator(".tile[aria-pressed=true]").count() == 1
        page.keyboard.press("t")
        page.keyboard.press("Enter")
        for left in (8, 4):
            expect(page.locator(".tile")).to_have_count(left)
            page.keyboard.press("Enter")
        page.get_by_text("Nothing is left for you now").wait_for()
        saved(page)
        assert_no_violations(page)
        votes = votes_of(served, "generalist")
    last = {vote.key: vote for vote in votes}
    assert len(last) == 20 and len({vote.sheet for vote in last.values()}) == 3
    assert sorted(vote.decision for vote in last.values()).count("keep") == 2
    reasons = [vote.reason for vote in last.values() if vote.decision == "drop"]
    assert sorted(set(reasons)) == ["not picked", "unsafe"] and reasons.count("unsafe") == 1
    assert all(vote.seconds is not None and vote.plan and vote.rater.startswith("generalist-") for vote in votes)


def test_single_pictures_one_key_a_decision_unsure_comes_back(tmp_path: Path, page: Any) -> None:
    open_pictures(tmp_path / "data", "specialist", 6, raters_per_item=1)
    with serving(tmp_path / "data") as served:
        enter(page, served, "specialist", "#stage img")
        shown = page.locator("#stage img")
        shown.wait_for()
        assert_no_violations(page)
        seen = []

        def press(key: str) -> None:
            source = shown.get_attribute("src")
            seen.append(source)
            page.keyboard.press(key)
            page.wait_for_function(
                "src => document.querySelector('#stage img')?.src.endsWith(src) !== true", arg=source
            )

        press("u")
        press("k")
        press("3")
        page.keyboard.press("Backspace")  # the third again
        assert shown.get_attribute("src") == seen[-1]
        press("k")
        # taken back before the next picture is there: the one on the screen is not lost, nor shown twice
        page.evaluate("""() => {
          const press = (key) => dispatchEvent(new KeyboardEvent('keydown', { key }));
          press('k'); press('Backspace'); press('Backspace');
        }""")
        assert shown.get_attribute("src") == seen[-1]
        press("k")
        skipped = shown.get_attribute("src")
        page.keyboard.press("s")
        page.locator("#why").fill("out of focus on purpose?")
        page.keyboard.press("Enter")
        expect(shown).not_to_have_attribute("src", skipped)
        press("x")
        press("1")
        assert shown.get_attribute("src") == seen[0]  # what was unsure, at the end
        press("k")
        page.get_by_text("Nothing is left for you now").wait_for()
        saved(page)
        votes = votes_of(served, "specialist")
    last = {vote.key: (vote.decision, vote.reason) for vote in votes}
    assert sorted(last.values()) == [
        ("drop", "composition"),
        ("drop", "unsafe"),
        ("keep", ""),
        ("keep", ""),
        ("keep", ""),
        ("skipped", "out of focus on purpose?"),
    ]


@pytest.mark.parametrize("is_late", [True, False])
def test_unsure_on_the_last_picture_taken_back_shows_it_once(tmp_path: Path, page: Any, is_late: bool) -> None:
    """Taken back while the same picture, which comes again as unsure, is on its way, or is on the screen already."""
    open_pictures(tmp_path / "data", "specialist", 1, raters_per_item=1)
    waiting: list[Any] = []
    with serving(tmp_path / "data") as served:
        enter(page, served, "specialist", "#stage img")
        if is_late:
            page.route("**/pictures/**", lambda route: waiting.append(route))
        first = page.locator("#stage img").element_handle()
        page.keyboard.press("u")
        if is_late:
            while not waiting:
                page.wait_for_timeout(20)
        else:
            page.wait_for_function("image => document.querySelector('#stage img') !== image", arg=first)
        page.keyboard.press("Backspace")
        page.wait_for_function("image => document.querySelector('#stage img') === image", arg=first)
        for route in waiting:
            route.continue_()
        page.unroute("**/pictures/**")
        saved(page)
        page.wait_for_timeout(300)  # what came late has arrived
        page.keyboard.press("k")
        page.get_by_text("Nothing is left for you now").wait_for()
        saved(page)
        votes = votes_of(served, "specialist")
    assert [vote.decision for vote in votes] == ["unsure", "withdrawn", "keep"]


def test_a_sheet_gone_back_to_while_the_next_one_is_on_its_way_stays(tmp_path: Path, page: Any) -> None:
    open_pictures(tmp_path / "data", "generalist", 12, sheet_size=6)
    with serving(tmp_path / "data") as served:
        enter(page, served, "generalist", ".tile:nth-child(6)")
        first = page.locator(".tile img").first.get_attribute("src")
        page.evaluate("""() => {
          const press = (key) => dispatchEvent(new KeyboardEvent('keydown', { key }));
          press('Enter'); press('Backspace');
        }""")
        page.wait_for_timeout(500)
        assert page.locator(".tile img").first.get_attribute("src") == first
        for _ in range(2):
            before = page.locator(".tile img").first.get_attribute("src") if page.locator(".tile").count() else ""
            page.keyboard.press("Enter")
            page.wait_for_function(
                "src => document.querySelector('.tile img')?.getAttribute('src') !== src", arg=before
            )
        page.get_by_text("Nothing is left for you now").wait_for()
        saved(page)
        votes = votes_of(served, "generalist")
    assert len({vote.key for vote in votes}) == 12


def test_what_is_not_saved_is_shown_and_sent_again(tmp_path: Path, page: Any) -> None:
    """The network goes, the page is reloaded meanwhile, the server is killed and comes back."""
    open_pictures(tmp_path / "data", "specialist", 12, raters_per_item=1)
    with serving(tmp_path / "data") as served:
        enter(page, served, "specialist", "#stage img")
        page.locator("#stage img").wait_for()
        page.keyboard.press("k")
        saved(page)
        served.process.kill()
        served.process.wait()
        for _ in range(3):
            page.keyboard.press("k")
        page.get_by_text("3 not saved").wait_for()
    port = int(served.address.rsplit(":", 1)[1])
    with serving(tmp_path / "data", port=port) as served:
        page.reload()
        saved(page)
        page.locator("#stage img").wait_for()
        page.go_back()
        page.go_forward()
        page.locator("#stage img").wait_for()
        saved(page)
        votes = votes_of(served, "specialist")
    assert len(votes) == 4 and len({vote.key for vote in votes}) == 4


def test_two_tabs_take_no_vote_twice(tmp_path: Path, browser: Any) -> None:
    open_pictures(tmp_path / "data", "specialist", 5, raters_per_item=1)
    context = browser.new_context()
    with serving(tmp_path / "data") as served:
        first = context.new_page()
        enter(first, served, "specialist", "#stage img")
        first.locator("#stage img").wait_for()
        second = context.new_page()
        second.goto(first.url)
        second.locator("#stage img").wait_for()
        for tab in (first, second):
            tab.bring_to_front()
            for _ in range(5):
                tab.keyboard.press("k")
                tab.wait_for_timeout(100)
            saved(tab)
        votes = votes_of(served, "specialist")
    context.close()
    assert len(votes) == 5 and len({vote.key for vote in votes}) == 5
