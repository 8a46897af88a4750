"""The lead's pages: for leads alone, every change with its token, and what each button does."""

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from fastapi.routing import APIRoute
from playwright.sync_api import expect

from emu_data.votes.rounds import open_log
from emu_data.votes.vote import counted
from emu_studio.app import Studio, make_app
from emu_studio.ballots import read_votes, verify_chain
from emu_studio.items import NewItem, items_of_folder
from emu_studio.openable import Openable, Tell
from emu_studio.people import find_by_token, invite, list_people
from emu_studio.plan import default_plan, parse_plan, write_plan
from emu_studio.rounds import find_round, list_rounds, open_round
from emu_studio.routes.lead import router
from emu_studio.serve import open_studio
from tests.e2e.pages import free_port
from tests.emu_studio.driving import assert_no_violations
from tests.emu_studio.inside import Inside, come_in
from tests.emu_studio.served import open_pictures, paint, pairs_of, serving

BALLOT = "0123456789abcdef"


def ballot(item: int, decision: str, number: int = 0, **more: Any) -> dict[str, Any]:
    return {"ballot": f"{BALLOT}-{number}", "item": item, "decision": decision, **more}


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """Three rounds are open, and one may be opened."""
    folder = paint(tmp_path / "pictures", 6)

    def openable() -> dict[str, Openable]:
        return {"captions": Openable(default_plan("captions"), lambda tell: items_of_folder(folder))}

    studio = open_studio(tmp_path / "data", openable=openable)
    open_round(studio.database, default_plan("specialist", raters_per_item=2), items_of_folder(folder))
    open_round(studio.database, default_plan("generalist"), items_of_folder(folder))
    plan = default_plan("appeal", raters_per_item=1, planned_prompts=2)
    open_round(studio.database, plan, pairs_of(tmp_path / "pairs", 3))
    yield studio
    studio.database.close()


@pytest.fixture
def lead(studio: Studio) -> Inside:
    return come_in(studio, "lead", "Lea")


def rater(studio: Studio, name: str, round_name: str) -> Inside:
    someone = come_in(studio, find_round(studio.database, round_name).plan.roles[0], name)
    assert someone.post(f"/api/rounds/{round_name}/consent", {}).status_code == 200
    return someone


def vote(someone: Inside, round_name: str, *ballots: dict[str, Any]) -> None:
    answer = someone.post(f"/api/rounds/{round_name}/votes", {"ballots": list(ballots)})
    assert answer.status_code == 200, answer.text


def items_of(someone: Inside, round_name: str) -> list[int]:
    answer = someone.post(f"/api/rounds/{round_name}/turns", {"num": 50})
    return sorted(turn["item"] for turn in answer.json()["turns"])


def disagree(studio: Studio) -> list[int]:
    """Anna keeps all six pictures, Ben drops the second and calls the third unsafe."""
    anna, ben = rater(studio, "Anna", "specialist"), rater(studio, "Ben", "specialist")
    items = items_of(anna, "specialist")
    vote(anna, "specialist", *(ballot(item, "keep", item, seconds=3.0) for item in items))
    vote(ben, "specialist", *(ballot(item, "keep", item, seconds=0.1) for item in items if item not in items[1:3]))
    vote(
        ben, "specialist", ballot(items[1], "drop", 101, reason="light"), ballot(items[2], "drop", 102, reason="unsafe")
    )
    return items


FILLED = {"name": "specialist", "what": "disputed", "kind": "csv", "pseudonym": "lead-1", "act": "revoke"}
BODIES = {
    "close": {"why": "enough"},
    "reopen": {"why": "more"},
    "release": {"pseudonym": "lead-1"},
    "adjudicate": ballot(1, "keep"),
    "import": {"text": "rater,key,decision\na,0001.png,keep\n", "kind": "csv", "source": "elsewhere"},
    "open/{name}": {"plan": ""},
    "people": {"name": "Eve", "role": "lead"},
    "{act}": {},
}
ROUTES = [route for route in router.routes if isinstance(route, APIRoute)]


def body_of(route: APIRoute) -> Any:
    return next(body for end, body in BODIES.items() if route.path.endswith(end))


def test_everybody_else_gets_nothing_anywhere(studio: Studio) -> None:
    assert len(ROUTES) == 14
    everybody = [come_in(studio, role) for role in ("generalist", "specialist", "rater")]
    for someone, expected in [*((one, 403) for one in everybody), (everybody[0], 401)]:
        if expected == 401:
            someone.http.cookies.clear()
        else:
            assert ">Lead<" not in someone.get("/").text
        for route in ROUTES:
            path = route.path.format(**FILLED)
            answer = someone.get(path) if "GET" in (route.methods or ()) else someone.post(path, body_of(route))
            assert answer.status_code == expected, (someone.person, path)
    assert [one.revoked for one in list_people(studio.database)] == [None] * 3
    assert find_round(studio.database, "specialist").closed is None


def test_every_change_needs_the_token_of_a_page_of_this_site(studio: Studio, lead: Inside) -> None:
    for route in ROUTES:
        path = route.path.format(**{**FILLED, "pseudonym": lead.person.pseudonym})
        for headers in ({}, {"X-CSRF-Token": "0" * 64}, {"X-CSRF-Token": lead.csrf, "Sec-Fetch-Site": "cross-site"}):
            if "POST" in (route.methods or ()):
                assert lead.http.post(path, json=body_of(route), headers=headers).status_code == 403
    assert len(list_people(studio.database)) == 1 and find_round(studio.database, "specialist").closed is None
    assert read_votes(studio.database, find_round(studio.database, "specialist").id) == []


def test_people_are_invited_renewed_revoked_and_forgotten(studio: Studio, lead: Inside) -> None:
    told = lead.post("/api/lead/people", {"name": "Anna", "role": "specialist"}).json()
    token = told["link"].removeprefix("/enter/")
    assert (anna := find_by_token(studio.database, token)) and anna.name == "Anna"
    page = lead.get("/lead/people").text
    assert "Anna" in page and token not in page and "<h1>People</h1>" in page
    again = lead.post(f"/api/lead/people/{anna.pseudonym}/renew", {}).json()["link"].removeprefix("/enter/")
    assert find_by_token(studio.database, token) is None and find_by_token(studio.database, again)
    assert lead.post(f"/api/lead/people/{anna.pseudonym}/revoke", {}).status_code == 200
    assert find_by_token(studio.database, again) is None
    assert lead.post(f"/api/lead/people/{anna.pseudonym}/erase", {}).status_code == 200
    assert "Anna" not in lead.get("/lead/people").text
    assert lead.post("/api/lead/people/nobody/revoke", {}).status_code == 404
    assert lead.post(f"/api/lead/people/{lead.person.pseudonym}/revoke", {}).status_code == 400
    assert lead.post("/api/lead/people", {"name": " ", "role": "rater"}).status_code == 400
    assert lead.post("/api/lead/people", {"name": "Eve", "role": "queen"}).status_code == 422


def test_what_a_revoked_rater_held_goes_to_others_at_once(studio: Studio, lead: Inside) -> None:
    anna, ben, carl = (rater(studio, name, "generalist") for name in ("Anna", "Ben", "Carl"))
    assert len(items_of(anna, "generalist")) == 6 and items_of(ben, "generalist") == []
    assert lead.post(f"/api/lead/people/{anna.person.pseudonym}/revoke", {}).status_code == 200
    assert len(items_of(ben, "generalist")) == 6 and items_of(carl, "generalist") == []
    page = lead.get("/lead/rounds/generalist").text
    assert "Release" in page and "Ben: 6" in " ".join(page.split())
    body = {"pseudonym": ben.person.pseudonym}
    assert lead.post("/api/lead/rounds/generalist/release", body).json() == {"released": 6}
    assert len(items_of(carl, "generalist")) == 6


def test_a_round_is_closed_and_reopened_with_a_reason(studio: Studio, lead: Inside) -> None:
    anna = rater(studio, "Anna", "generalist")
    (item, *_) = items_of(anna, "generalist")
    path = "/api/lead/rounds/generalist"
    assert lead.post(f"{path}/close", {"why": " "}).status_code == 400
    assert lead.post(f"{path}/reopen", {"why": "x"}).status_code == 409
    assert lead.post(f"{path}/close", {"why": "we have <enough>"}).status_code == 200
    assert lead.post(f"{path}/close", {"why": "again"}).status_code == 409
    refused = anna.post("/api/rounds/generalist/votes", {"ballots": [ballot(item, "keep")]})
    assert refused.status_code in (400, 403) and "closed" in refused.text
    assert (studio.votes_folder / "generalist" / "plan.json").is_file()
    page = lead.get("/lead/rounds/generalist").text
    assert "we have &lt;enough&gt;" in page and "Lea" in page and "Reopen" in page
    assert lead.post(f"{path}/reopen", {"why": "not enough after all"}).status_code == 200
    vote(anna, "generalist", ballot(item, "keep"))
    assert "not enough after all" in lead.get("/lead/rounds/generalist").text
    assert lead.post(f"{path}/close", {"why": "now"}).status_code == 200
    written = open_log(studio.votes_folder / "generalist").read()
    assert written == read_votes(studio.database, find_round(studio.database, "generalist").id) and len(written) == 1
    assert lead.post("/api/lead/rounds/nothing/close", {"why": "x"}).status_code == 404


def test_an_adjudication_decides_and_erases_nobodys_word(studio: Studio, lead: Inside) -> None:
    items = disagree(studio)
    page = lead.get("/lead/rounds/specialist/disputed").text
    assert page.count("<article") == 2 and page.count("Anna") == page.count("Ben") == 2
    assert lead.get("/lead/rounds/specialist/unsafe").text.count("<article") == 1
    path = "/api/lead/rounds/specialist/adjudicate"
    for bad in ("unsure", "skipped", "A"):
        assert lead.post(path, ballot(items[1], bad)).status_code == 400
    assert lead.post(path, ballot(10**6, "keep")).status_code == 400
    assert lead.post(path, ballot(items[1], "drop", 7, reason="colour")).json()["is_new"]
    assert not lead.post(path, ballot(items[1], "drop", 7, reason="colour")).json()["is_new"]
    assert lead.post(path, ballot(items[2], "keep", 8)).status_code == 200
    assert lead.get("/lead/rounds/specialist/disputed").text.count("<article") == 0
    assert lead.get("/lead/rounds/specialist/unsafe").text.count("<article") == 0
    decided = lead.get("/lead/rounds/specialist/adjudicated").text
    assert decided.count("<article") == 2 and "Lea, adjudicating" in decided

    votes = read_votes(studio.database, find_round(studio.database, "specialist").id)
    assert len(votes) == 14
    shown = {vote.key: vote.seen for vote in votes}
    words = {vote.key: vote for vote in counted(votes, shown) if vote.is_adjudication}
    assert sorted((v.decision, v.reason, v.rater) for v in words.values()) == [
        ("drop", "colour", lead.person.pseudonym),
        ("keep", "", lead.person.pseudonym),
    ]
    assert lead.post(path, ballot(items[1], "withdrawn", 9)).status_code == 200
    assert lead.get("/lead/rounds/specialist/disputed").text.count("<article") == 1
    studio.queues.close()  # as after a restart: raters are asked as before
    queue = studio.queues.of("specialist")
    assert queue.num_finished == 6 and queue.num_decided(lead.person) == 0


def test_a_comparison_is_not_adjudicated_and_says_nothing_before_its_number(studio: Studio, lead: Inside) -> None:
    anna = rater(studio, "Anna", "appeal")
    items = items_of(anna, "appeal")
    assert lead.post("/api/lead/rounds/appeal/adjudicate", ballot(items[0], "keep")).status_code == 400
    vote(anna, "appeal", ballot(items[0], "left"))
    page = lead.get("/lead/rounds/appeal").text
    assert "Hidden until 2 prompts" in page and "A wins" not in page
    for kind in ("csv", "parquet", "label-studio", "preferences"):
        assert lead.get(f"/lead/rounds/appeal/out/{kind}").status_code == 409
    vote(anna, "appeal", ballot(items[1], "left", 1))
    page = lead.get("/lead/rounds/appeal").text
    assert "A wins" in page and "planned 2 prompts" in page and "anytime-valid" not in page
    assert lead.get("/lead/rounds/appeal/out/csv").status_code == 200
    assert lead.get("/lead/rounds/appeal/out/preferences").status_code == 409
    assert "measures models" in page


def test_a_round_is_opened_from_its_plan(studio: Studio, lead: Inside) -> None:
    assert "/lead/open/captions" in lead.get("/lead").text
    page = lead.get("/lead/open/captions").text
    assert "lease_minutes: 60.0" in page and lead.get("/lead/open/nothing").status_code == 404
    plan = default_plan("captions", lease_minutes=45.0, seed=7)
    path = "/api/lead/open/captions"
    other = {**yaml.safe_load(write_plan(plan)), "name": "other"}
    for bad, told in (("question: appeal", "name"), ("- 1", "question"), ("{", "no YAML"), (yaml.dump(other), "name")):
        answer = lead.post(path, {"plan": bad})
        assert answer.status_code == 400 and told in answer.json()["detail"]
    assert lead.post(path, {"plan": write_plan(plan)}).json() == {"to": "/lead/rounds/captions"}
    found = find_round(studio.database, "captions")
    assert found.plan == plan and found.plan_digest == plan.digest
    assert "/lead/open/captions" not in lead.get("/lead").text
    assert lead.post(path, {"plan": write_plan(plan)}).status_code == 400  # exists already
    shown = lead.get("/lead/rounds/captions").text
    assert plan.digest in shown and plan.guideline_version in shown and "lease_minutes: 45.0" in shown


@dataclass
class Slow:
    """A round whose pictures are found when the test says so."""

    folder: Path
    may_go_on: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def openable(self) -> dict[str, Openable]:
        return {"captions": Openable(default_plan("captions"), self.items)}

    def items(self, tell: Tell) -> list[NewItem]:
        tell(2, 1234)
        assert self.may_go_on.wait(60)
        if self.error:
            raise self.error
        return items_of_folder(self.folder)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slow:
    monkeypatch.setattr("emu_studio.routes.lead.AT_ONCE", 0.05)
    return Slow(paint(tmp_path / "slow", 3))


def test_a_round_that_takes_long_is_prepared_in_the_background(
    tmp_path: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = open_studio(tmp_path / "data", openable=slow.openable)
    lead, body = come_in(studio, "lead", "Lea"), {"plan": write_plan(default_plan("captions"))}
    slow.error = ValueError("no <b>pictures</b> there")
    assert lead.post("/api/lead/open/captions", body).json() == {"to": "/lead"}
    shown = lead.get("/lead").text
    assert "captions is being prepared: 2 of 1 234" in re.sub("[,\u2009\u202f\xa0]", " ", shown)
    assert "/lead/open/captions" not in shown and list_rounds(studio.database) == []
    again = lead.post("/api/lead/open/captions", body)
    assert again.status_code == 400 and "already" in again.json()["detail"]
    (preparation,) = studio.preparations.list()
    slow.may_go_on.set()
    assert preparation.ended.wait(60)
    shown = lead.get("/lead").text
    assert "captions was not opened: no &lt;b&gt;pictures&lt;/b&gt; there" in shown
    assert "/lead/open/captions" in shown and list_rounds(studio.database) == []  # it can be tried again
    monkeypatch.setattr("emu_studio.routes.lead.AT_ONCE", 60.0)
    slow.error = RuntimeError("of another kind")
    assert "RuntimeError: of another kind" in lead.post("/api/lead/open/captions", body).json()["detail"]
    slow.error = None
    assert lead.post("/api/lead/open/captions", body).json() == {"to": "/lead/rounds/captions"}
    assert "not opened" not in lead.get("/lead").text and studio.preparations.list() == []
    studio.database.close()


@pytest.mark.browser
@pytest.mark.slow
def test_the_list_of_rounds_follows_what_is_prepared(tmp_path: Path, slow: Slow, page: Any) -> None:
    studio, port = open_studio(tmp_path / "data", openable=slow.openable), free_port()
    _, token = invite(studio.database, "Lea", "lead")
    server = uvicorn.Server(uvicorn.Config(make_app(studio), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        page.goto(f"http://127.0.0.1:{port}/enter/{token}")
        page.goto(f"http://127.0.0.1:{port}/lead/open/captions")
        page.get_by_role("button", name="Open the round").press("Enter")
        page.get_by_text("captions is being prepared: 2 of").wait_for()
        assert_no_violations(page)
        studio.preparations.list()[0].tell(1000, 1234)
        page.get_by_text("captions is being prepared: 1").wait_for()
        slow.may_go_on.set()
        page.get_by_role("link", name="captions").wait_for()
        assert page.locator("#preparing").count() == 0
    finally:
        slow.may_go_on.set()
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("question", ["generalist", "specialist", "captions", "appeal", "faithfulness"])
def test_a_plan_is_the_same_after_it_was_written_and_read(question: str) -> None:
    plan = default_plan(question, guideline="First: “this”.\n\n- second\n\n# third", seed=5)
    assert parse_plan(write_plan(plan)) == plan and "\\n" not in write_plan(plan)


@pytest.mark.browser
@pytest.mark.slow
def test_the_pages_by_keys_alone(tmp_path: Path, page: Any) -> None:
    open_pictures(tmp_path / "data", "specialist", 6, raters_per_item=2)
    open_pictures(tmp_path / "data", "appeal", 4, raters_per_item=1)
    with serving(tmp_path / "data") as served:
        anna, ben = (served.person(name, "specialist").join("specialist") for name in ("Anna", "Ben"))
        items = [turn["item"] for turn in anna.turns("specialist", 6)]
        assert anna.vote("specialist", *(ballot(item, "keep", item) for item in items)).status_code == 200
        bens = [ballot(item, "drop", item, reason="light" if n else "unsafe") for n, item in enumerate(items[:3])]
        assert ben.vote("specialist", *bens).status_code == 200
        judge = served.person("Jo", "rater").join("appeal")
        pairs = [turn["item"] for turn in judge.turns("appeal", 3)]
        assert judge.vote("appeal", *(ballot(item, "left", item) for item in pairs)).status_code == 200

        page.goto(served.link("Lea", "lead"))
        page.get_by_role("link", name="Lead", exact=True).press("Enter")
        expect(page.get_by_role("heading", name="Rounds")).to_be_visible()
        assert_no_violations(page)
        page.get_by_role("link", name="appeal").press("Enter")
        expect(page.get_by_text("anytime-valid")).to_be_visible()
        assert_no_violations(page)

        page.get_by_role("link", name="Rounds").press("Enter")
        page.get_by_role("link", name="specialist").press("Enter")
        page.get_by_role("link", name="3 on which raters disagree").press("Enter")
        page.locator("article").first.wait_for()
        assert_no_violations(page)
        page.locator("article button").first.focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # the second button: drop, because of the first part
        expect(page.locator(".outcome").first).to_have_text("Adjudicated: drop, composition")
        expect(page.locator("article").nth(1).locator("button").first).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator(".outcome").nth(1)).to_have_text("Adjudicated: keep")
        page.reload()
        expect(page.locator("article")).to_have_count(1)
        page.get_by_role("link", name="specialist").press("Enter")
        page.get_by_role("link", name="2 that you decided").press("Enter")
        assert_no_violations(page)
        page.locator("article button").first.press("Enter")
        expect(page.locator(".outcome").first).to_have_text("Adjudicated: withdrawn")

        page.get_by_role("link", name="specialist").press("Enter")
        assert_no_violations(page)
        page.locator("summary").press("Enter")
        expect(page.locator("pre")).to_contain_text("raters_per_item: 2")
        assert_no_violations(page)
        page.get_by_role("button", name="Close …").press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # without a reason nothing happens
        expect(page.locator("#ask")).to_be_visible()
        assert_no_violations(page)
        page.locator("#ask-why").fill("seen enough")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Reopen …")).to_be_visible()
        expect(page.get_by_text("seen enough")).to_be_visible()

        page.get_by_role("link", name="People").press("Enter")
        assert_no_violations(page)
        page.get_by_label("Name", exact=True).fill("Zoe <b>")
        page.keyboard.press("Enter")
        link = page.get_by_label("Personal link")
        expect(link).to_be_focused()
        assert re.fullmatch(rf"{served.address}/enter/[\w-]{{32}}", link.input_value())
        assert_no_violations(page)
        page.reload()
        expect(page.get_by_role("rowheader", name="Zoe <b>")).to_be_visible()
        page.get_by_role("button", name="Revoke the link of Zoe").press("Enter")
        page.keyboard.press("Escape")  # thought better of it
        page.get_by_role("button", name="Revoke the link of Zoe").press("Enter")
        page.get_by_role("button", name="Yes").press("Enter")
        expect(page.get_by_role("button", name="Revoke the link of Zoe")).to_have_count(0)
        database = open_studio(tmp_path / "data").database
        assert verify_chain(database, find_round(database, "specialist").id) == []
        database.close()
