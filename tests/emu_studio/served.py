"""The studio for tests: rounds over small drawn pictures, served by a process of its own, and people who come in.

As a program, which a test can kill: python -m tests.emu_studio.served DATA PORT [DATABASE] [DELAY]
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from emu_studio.database import open_database
from emu_studio.items import NewItem, items_of_folder, items_of_pairs
from emu_studio.people import invite
from emu_studio.plan import default_plan
from emu_studio.rounds import open_round
from emu_studio.serve import open_studio, serve
from tests.e2e.pages import free_port

TOP = Path(__file__).parents[2]
START_SECONDS = 60


def paint(folder: Path, num: int, size: tuple[int, int] = (64, 48)) -> Path:
    """Pictures of soft patches, no two alike, each with its number as caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        coarse = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(f"picture {number}")
    return folder


def pairs_of(folder: Path, num: int, with_caption: bool = False) -> list[NewItem]:
    """Pairs of such pictures: A's are even, B's odd."""
    files = sorted(paint(folder, 2 * num).glob("*.png"))
    pairs = [(f"{n:04d}", files[2 * n], files[2 * n + 1], f"prompt {n}") for n in range(num)]
    return items_of_pairs(pairs, with_caption)


def open_pictures(data: Path, question: str, num: int, url: str | None = None, **plan: Any) -> None:
    """A round over `num` pictures, or pairs."""
    database = open_database(url or data / "studio" / "studio.db")
    folder = data.parent / f"pictures of {question}"
    is_pairs = question in ("appeal", "faithfulness")
    items = pairs_of(folder, num, question == "faithfulness") if is_pairs else items_of_folder(paint(folder, num))
    open_round(database, default_plan(question, **plan), items)
    database.close()


@dataclass
class Client:
    """Somebody's browser without a browser."""

    address: str
    token: str
    http: httpx.Client = field(init=False)
    csrf: str = ""

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.address, follow_redirects=True, timeout=60)
        found = re.search(r'data-csrf="([0-9a-f]+)"', self.http.get(f"/enter/{self.token}").text)
        assert found
        self.csrf = found[1]

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.http.post(path, json=body, headers={"X-CSRF-Token": self.csrf})

    def join(self, name: str) -> "Client":
        assert self.post(f"/api/rounds/{name}/consent", {}).status_code == 200
        return self

    def turns(self, name: str, num: int) -> list[dict[str, Any]]:
        answer = self.post(f"/api/rounds/{name}/turns", {"num": num})
        assert answer.status_code == 200, answer.text
        return answer.json()["turns"]

    def vote(self, name: str, *ballots: dict[str, Any]) -> httpx.Response:
        return self.post(f"/api/rounds/{name}/votes", {"ballots": list(ballots)})


@dataclass
class Served:
    """A running studio."""

    data: Path
    address: str
    process: subprocess.Popen
    url: str | None = None

    def person(self, name: str, role: str) -> Client:
        return Client(self.address, self.link(name, role).rsplit("/", 1)[1])

    def link(self, name: str, role: str) -> str:
        """The personal link of somebody new."""
        database = open_database(self.url or self.data / "studio" / "studio.db")
        _, token = invite(database, name, role)
        database.close()
        return f"{self.address}/enter/{token}"


@contextmanager
def serving(data: Path, url: str | None = None, port: int | None = None, delay: float = 0.0) -> Iterator[Served]:
    """Serve the studio of a data folder on 127.0.0.1 until the block ends."""
    port = port or free_port()
    command = [sys.executable, "-m", "tests.emu_studio.served", str(data), str(port), url or "", str(delay)]
    process = subprocess.Popen(command, cwd=TOP, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, process)
        yield Served(data, address, process, url)
    finally:
        process.kill()
        process.wait()


def _wait(address: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the studio ended"
        try:
            httpx.get(f"{address}/static/studio.css", timeout=2)
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the studio does not answer")


def main(arguments: Sequence[str]) -> None:
    data, port, url, delay = arguments
    studio = open_studio(Path(data), url or None)
    if float(delay):
        _delay_all(float(delay))
    serve(studio, int(port))


def _delay_all(seconds: float) -> None:
    """As a network of so many seconds there and back."""
    import asyncio

    from emu_studio import app

    class Late(app.Guard):
        async def __call__(self, *given: Any) -> None:
            await asyncio.sleep(seconds)
            await super().__call__(*given)

    app.Guard = Late


if __name__ == "__main__":
    main(sys.argv[1:])
