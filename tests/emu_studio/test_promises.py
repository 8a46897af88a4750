"""What a confirmed vote survives, and what strangers, revoked links and two people at once cannot do."""

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from emu_data.votes.vote import counted
from emu_studio.ballots import read_votes, verify_chain
from emu_studio.database import Database, open_database
from emu_studio.people import Person, erase_name, invite, list_people, revoke
from emu_studio.queue import Queue
from emu_studio.rounds import find_round
from tests.emu_studio import postgres
from tests.emu_studio.served import Client, Served, open_pictures, serving

pytestmark = pytest.mark.slow


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=postgres.needed)])
def server(request: pytest.FixtureRequest) -> Iterator[postgres.Server | None]:
    """None stands for SQLite."""
    if request.param == "sqlite":
        yield None
    else:
        with postgres.running() as server:
            yield server


def ballot(item: int, decision: str = "keep", **more: Any) -> dict[str, Any]:
    return {"ballot": f"{random.getrandbits(64):016x}", "item": item, "decision": decision, **more}


def open_of(served: Served) -> Database:
    return open_database(served.url or served.data / "studio" / "studio.db")


def check(served: Served, name: str) -> list[Any]:
    database = open_of(served)
    round_id = find_round(database, name).id
    assert verify_chain(database, round_id) == []
    votes = read_votes(database, round_id)
    database.close()
    return votes


def test_a_confirmed_vote_survives_kill_9(tmp_path: Path, server: postgres.Server | None) -> None:
    """Of the studio, and of the database; what was sent and not confirmed is sent again and taken once."""
    url = server.url if server else None
    open_pictures(tmp_path / "data", "specialist", 60, url, raters_per_item=1)
    confirmed: set[str] = set()
    sent: dict[str, dict[str, Any]] = {}
    link = ""
    for round_number in range(4):
        with serving(tmp_path / "data", url) as served:
            link = link or served.link("Anna", "specialist").rsplit("/", 1)[1]
            anna = Client(served.address, link).join("specialist")
            if sent:
                again = anna.vote("specialist", *sent.values())
                assert again.status_code == 200 and len(again.json()["confirmed"]) == len(sent)
                confirmed |= set(sent)
            sent = {}
            turns = anna.turns("specialist", 15)
            threading.Timer(
                random.Random(round_number).uniform(0.0, 0.25), kill, [served, server, round_number]
            ).start()
            for turn in turns:
                one = ballot(turn["item"])
                sent[one["ballot"]] = one
                try:
                    answer = anna.vote("specialist", one)
                except httpx.TransportError:
                    break
                if answer.status_code == 200:
                    confirmed.add(one["ballot"])
                    del sent[one["ballot"]]
            time.sleep(0.3)  # the timer has fired
        if server is not None and round_number % 2:
            server.start()
    with serving(tmp_path / "data", url) as served:
        anna = Client(served.address, link)
        if sent:
            anna.vote("specialist", *sent.values())
        votes = check(served, "specialist")
    assert len(votes) == len({vote.key for vote in votes}) == len(confirmed | set(sent))


def kill(served: Served, server: postgres.Server | None, number: int) -> None:
    if server is not None and number % 2:
        server.kill()
    else:
        os.kill(served.process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("num_people", "kind"), [(50, "sqlite"), pytest.param(200, "postgresql", marks=postgres.needed)]
)
def test_many_people_at_once_lose_nothing_and_get_nobody_elses(tmp_path: Path, num_people: int, kind: str) -> None:
    if kind == "sqlite":
        vote_at_once(tmp_path, None, num_people)
    else:
        with postgres.running() as server:
            vote_at_once(tmp_path, server.url, num_people)


def vote_at_once(tmp_path: Path, url: str | None, num_people: int) -> None:
    open_pictures(tmp_path / "data", "specialist", 4 * num_people, url, raters_per_item=1)
    taken: list[tuple[str, int]] = []
    problems: list[str] = []
    with serving(tmp_path / "data", url) as served:
        database = open_of(served)
        tokens = [invite(database, f"person {n}", "specialist")[1] for n in range(num_people)]
        database.close()

        def work(token: str) -> None:
            try:
                me = Client(served.address, token).join("specialist")
                for turn in me.turns("specialist", 3):
                    answer = me.vote("specialist", ballot(turn["item"]))
                    if answer.status_code != 200:
                        problems.append(answer.text)
                    taken.append((token, turn["item"]))
            except (httpx.TransportError, AssertionError) as error:
                problems.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=work, args=[token]) for token in tokens]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        votes = check(served, "specialist")
    assert problems == []
    assert max(Counter(item for _, item in taken).values()) == 1
    assert len(votes) == len(taken) == 3 * num_people


def people_of(database: Database, num: int, role: str = "specialist") -> list[Person]:
    return [invite(database, f"person {n}", role)[0] for n in range(num)]


def test_leases_expire_are_kept_and_are_nobody_elses(tmp_path: Path) -> None:
    open_pictures(tmp_path / "data", "specialist", 10, raters_per_item=1, lease_minutes=1.0)
    database = open_database(tmp_path / "data" / "studio" / "studio.db")
    clock = [1000.0]
    round_ = find_round(database, "specialist")
    queue = Queue(database, round_, lambda: clock[0])
    anna, ben = people_of(database, 2)
    first = queue.take(anna, 6)
    assert len(first) == 6 and queue.take(anna, 6) == first
    assert len(queue.take(ben, 6)) == 4
    again = Queue(database, round_, lambda: clock[0])  # after a restart everybody holds what was on the screen
    assert {turn.item_id for turn in again.take(anna, 6)} == {turn.item_id for turn in first}
    clock[0] += 61
    assert len(again.take(ben, 10)) == 10 and again.take(anna, 10) == []
    assert again.release(ben.id) == 10 and len(again.take(anna, 10)) == 10


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Served]:
    open_pictures(tmp_path / "data", "generalist", 12)
    open_pictures(tmp_path / "data", "appeal", 4)
    with serving(tmp_path / "data") as served:
        yield served


def test_strangers_and_revoked_links_see_nothing(studio: Served) -> None:
    anna = studio.person("Anna", "generalist").join("generalist")
    item = anna.turns("generalist", 1)[0]["item"]
    paths = [
        "/",
        "/rounds/generalist",
        f"/pictures/{item}/0/tile",
        f"/pictures/{item}/0/full",
        "/lead",
        "/openapi.json",
    ]
    stranger = httpx.Client(base_url=studio.address)
    assert [stranger.get(path).status_code for path in paths[:4]] == [401] * 4
    forged = httpx.Client(base_url=studio.address, cookies={"emu_studio": "MQ.abc.def"})
    assert forged.get("/").status_code == 401
    assert stranger.get("/enter/anything").status_code == 404
    assert anna.http.get("/lead").status_code in (403, 404)
    database = open_of(studio)
    revoke(database, next(one.pseudonym for one in list_people(database) if one.name == "Anna"))
    assert [anna.http.get(path).status_code for path in paths[:4]] == [401] * 4
    assert anna.vote("generalist", ballot(item)).status_code == 401
    database.close()


def test_a_change_needs_the_pages_token_and_its_own_site(studio: Served) -> None:
    anna = studio.person("Anna", "generalist").join("generalist")
    item = anna.turns("generalist", 1)[0]["item"]
    body = {"ballots": [ballot(item)]}
    path = "/api/rounds/generalist/votes"
    assert anna.http.post(path, json=body).status_code == 403
    assert anna.http.post(path, json=body, headers={"X-CSRF-Token": "0" * 64}).status_code == 403
    foreign = {"X-CSRF-Token": anna.csrf, "Sec-Fetch-Site": "cross-site"}
    assert anna.http.post(path, json=body, headers=foreign).status_code == 403
    other = studio.person("Ben", "generalist")
    assert anna.http.post(path, json=body, headers={"X-CSRF-Token": other.csrf}).status_code == 403
    assert check(studio, "generalist") == []
    answer = anna.http.get("/")
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    cookie = studio_cookie(studio)
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie


def studio_cookie(served: Served) -> str:
    return httpx.get(served.link("Carl", "generalist")).headers["set-cookie"]


OUTSIDE = (
    *("/static/../app.py", "/static/%2e%2e/app.py", "/pictures/1/../../secret", "/enter/../../etc/passwd"),
    *("/pictures/99999999999999999999/0/tile", "/pictures/1/9/tile", "/pictures/1/-1/tile", "/pictures/1/0/huge"),
)


def test_no_path_climbs(studio: Served) -> None:
    anna = studio.person("Anna", "generalist")
    for path in OUTSIDE:
        answer = anna.http.get(f"{studio.address}{path}")
        assert answer.status_code in (401, 404, 422), (path, answer.text)


def test_votes_that_do_not_fit_are_refused_whole(studio: Served) -> None:
    anna = studio.person("Anna", "generalist").join("generalist")
    items = [turn["item"] for turn in anna.turns("generalist", 3)]
    bad = [
        ballot(items[0], "A"),
        ballot(items[0], "left"),
        ballot(items[0], "skipped"),
        ballot(10**6),
        ballot(items[0], picked=3),
    ]
    for one in bad:
        assert anna.vote("generalist", ballot(items[1]), one).status_code == 400
    assert anna.vote("generalist").status_code == 422
    assert anna.post("/api/rounds/nothing/turns", {"num": 1}).status_code == 404
    assert anna.post("/api/rounds/appeal/turns", {"num": 1}).status_code == 403  # not their role
    assert check(studio, "generalist") == []


def test_an_edit_anywhere_in_the_chain_is_found_and_names_are_no_part_of_it(studio: Served) -> None:
    anna = studio.person("Anna Karenina", "generalist").join("generalist")
    for turn in anna.turns("generalist", 5):
        assert anna.vote("generalist", ballot(turn["item"])).status_code == 200
    database, file = open_of(studio), studio.data / "studio" / "studio.db"
    person = next(one for one in list_people(database) if one.name == "Anna Karenina")
    erase_name(database, person.pseudonym)
    assert list_people(database)[0].name == "" and len(check(studio, "generalist")) == 5
    studio.process.kill()
    studio.process.wait()
    database.close()
    with sqlite3.connect(file) as found:
        found.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert not any(b"Karenina" in path.read_bytes() for path in file.parent.iterdir())
    edits = [
        "UPDATE votes SET line = replace(line, 'keep', 'drop') WHERE \"index\" = 2",
        'DELETE FROM votes WHERE "index" = 1',
        'DELETE FROM votes WHERE "index" = 4',
        "UPDATE votes SET hash = 'x' WHERE \"index\" = 3",
    ]
    for edit in edits:
        copy = file.with_name("copy.db")
        copy.write_bytes(file.read_bytes())
        with sqlite3.connect(copy) as found:
            assert found.execute(edit).rowcount == 1
        altered = open_database(copy)
        assert verify_chain(altered, find_round(altered, "generalist").id), edit
        altered.close()


def test_who_chose_does_not_judge_and_sides_stay_with_the_vote(studio: Served) -> None:
    """Unless the plan says so."""
    database = open_of(studio)
    ben = studio.person("Ben", "rater").join("appeal")
    turns = ben.turns("appeal", 10)
    assert len(turns) == 4 and all("caption" not in turn for turn in turns)
    for turn in turns:
        assert ben.vote("appeal", ballot(turn["item"], "left")).status_code == 200
    votes = check(studio, "appeal")
    assert all(vote.decision == vote.side_order[0] for vote in votes)
    items = {vote.key: vote.seen for vote in votes}
    assert len(counted(votes, items)) == 4
    database.close()
