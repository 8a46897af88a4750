"""People who vote at once at a pace of their own, and what each vote costs: for benchmarks/studio.py.

Each presses a key once a second, whether or not the studio keeps up: 60 pictures a minute, where professionals cull 45
to 67. How long a vote took is counted from the moment of the key, so that a vote that had to wait for the one before it
is charged for that, too. The people are one thread on raw connections, which costs little beside a server: how much is
measured, since all share the machine's cores.
"""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image

from emu_data.votes.vote import digest_picture
from emu_studio.database import open_database
from emu_studio.items import NewItem, Shown
from emu_studio.people import invite
from emu_studio.plan import default_plan
from emu_studio.rounds import open_round
from tests.emu_studio import postgres
from tests.emu_studio.served import Client, serving

NUM_VOTES = 20  # of each person
EVERY = 1.0  # s between two keys of a person


@dataclass(frozen=True)
class Voted:
    """What was measured. times: ms from key to confirmation, of each vote. rate: votes per second. studio, database,
    people: ms of CPU time per vote; of SQLite, which is part of the studio, 0."""

    times: list[float]
    rate: float
    studio: float
    database: float
    people: float


def vote_at_once(folder: Path, num_people: int, server: postgres.Server | None) -> Voted:
    """Have people vote. server: PostgreSQL; None for SQLite."""
    path = folder / "one.png"
    Image.new("RGB", (64, 64), "teal").save(path)
    shown = Shown(path, "one", digest_picture(path.read_bytes()))
    data, url = folder / "data", server.url if server else None
    database = open_database(url or data / "studio" / "studio.db")
    items = [NewItem(f"{n:05d}", shown.digest, (shown,)) for n in range(NUM_VOTES * num_people)]
    open_round(database, default_plan("specialist", raters_per_item=1), items)
    tokens = [invite(database, f"person {n}", "specialist")[1] for n in range(num_people)]
    database.close()
    with serving(data, url) as served:
        people = [Client(served.address, token).join("specialist") for token in tokens]
        requests = [_requests(person, number) for number, person in enumerate(people)]
        for person in people:
            person.http.close()
        studio, cluster = psutil.Process(served.process.pid), psutil.Process(server.pid) if server else None
        before = _cpu(studio), _cpu(cluster), time.process_time(), time.perf_counter()
        times = asyncio.run(_vote(served.address, requests))
        after = _cpu(studio), _cpu(cluster), time.process_time(), time.perf_counter()
    spent = [(end - start) for start, end in zip(before, after, strict=True)]
    assert len(times) == NUM_VOTES * num_people
    return Voted(times, len(times) / spent[3], *(1000 * one / len(times) for one in spent[:3]))


def _requests(person: Client, number: int) -> list[bytes]:
    """A person's votes as they go over the connection."""
    cookies = "; ".join(f"{name}={value}" for name, value in person.http.cookies.items())
    found = []
    for place, turn in enumerate(person.turns("specialist", NUM_VOTES)):
        ballot = {"ballot": f"bench-{number}-{place}", "item": turn["item"], "decision": "keep", "seconds": EVERY}
        body = json.dumps({"ballots": [ballot]}).encode()
        head = (
            "POST /api/rounds/specialist/votes HTTP/1.1\r\nHost: studio\r\nContent-Type: application/json\r\n"
            f"Cookie: {cookies}\r\nX-CSRF-Token: {person.csrf}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        found.append(head.encode() + body)
    return found


async def _vote(address: str, requests: Sequence[Sequence[bytes]]) -> list[float]:
    host, port = address.removeprefix("http://").split(":")
    rng, times = random.Random(0), list[float]()
    begin = time.perf_counter() + 1

    async def work(mine: Sequence[bytes], phase: float) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for number, request in enumerate(mine):
            due = begin + phase + number * EVERY
            await asyncio.sleep(due - time.perf_counter())
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            times.append(1000 * (time.perf_counter() - due))
            assert head.startswith(b"HTTP/1.1 200") and b'"is_new":true' in body, head + body
        writer.close()

    await asyncio.gather(*(work(mine, rng.uniform(0, EVERY)) for mine in requests))
    return times


def _cpu(process: psutil.Process | None) -> float:
    """Seconds of CPU time of a process and its children, those that ended included."""
    if process is None:
        return 0.0
    own = process.cpu_times()
    living = sum(sum(child.cpu_times()[:2]) for child in process.children(recursive=True))
    return own.user + own.system + own.children_user + own.children_system + living
