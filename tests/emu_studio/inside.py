"""The studio without a server: its application called directly, and rounds whose votes a test writes by hand."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.testclient import TestClient

from emu_data.votes.vote import Vote
from emu_studio.app import Studio, make_app
from emu_studio.people import Person, invite
from emu_studio.plan import RoundPlan
from emu_studio.records import Known, Record, Word
from emu_studio.rounds import OpenRound


@dataclass
class Inside:
    """Somebody at the application. csrf: the token of their pages."""

    studio: Studio
    person: Person
    http: TestClient
    csrf: str

    def get(self, path: str) -> Any:
        return self.http.get(path)

    def post(self, path: str, body: Any) -> Any:
        return self.http.post(path, json=body, headers={"X-CSRF-Token": self.csrf})


def come_in(studio: Studio, role: str, name: str = "Anna") -> Inside:
    person, token = invite(studio.database, name, role)
    http = TestClient(make_app(studio))
    found = re.search(r'data-csrf="([0-9a-f]+)"', http.get(f"/enter/{token}").text)
    assert found
    return Inside(studio, person, http, found[1])


def record_of(plan: RoundPlan, num: int, votes: Sequence[Vote] = (), gold: dict[int, str] | None = None) -> Record:
    """A round of `num` items k0, k1, … that were seen as s0, s1, …; of pairs each is a prompt of its own."""
    items = [Known(n + 1, (f"k{n}",), f"prompt {n}", (gold or {}).get(n)) for n in range(num)]
    shown = {f"k{n}": f"s{n}" for n in range(num)}
    words = [Word(vote, int(vote.key[1:]), False) for vote in votes]
    return Record(OpenRound(1, plan.name, plan, plan.digest, "2026-11-20T00:00:00.000Z", None), items, shown, words)


def vote_of(rater: str, item: int, decision: str, **more: Any) -> Vote:
    """A vote of a person on item k0, k1, …; of a pair A stood left, unless `side_order` says otherwise."""
    sides = {"side_order": "AB"} if decision in ("A", "B", "tie", "both", "neither") else {}
    given: dict[str, Any] = {"round": "round", "rater_kind": "person", "seen": f"s{item}", **sides, **more}
    return Vote(rater=rater, key=f"k{item}", decision=decision, **given)
