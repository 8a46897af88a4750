"""How fast the studio is for who chooses pictures, and for many at once: `make bench NAME=studio`.

A specialist presses a key three times a second for 300 photographs of 1600 px, in Chromium, with 200 ms put into every
answer of the server and 200 000 items in the round's queue. Measured in the page: from each key to the frame in which
the next picture is painted, and frames without a picture meanwhile. The peer is what annotation tools do whose users
complain of it (Label Studio #9101, darktable #9773): the same server, asked for the next picture when the key is
pressed.

Then people at once, each a thread with three votes, on SQLite (50) and on PostgreSQL (200; skipped by name where
Debian's package is not installed): time of a vote from request to confirmation, on disk.

Ten minutes; the machine must be idle.
"""

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from emu_data.votes.vote import digest_picture
from emu_studio.database import open_database
from emu_studio.items import NewItem, Shown
from emu_studio.people import invite
from emu_studio.plan import default_plan
from emu_studio.rounds import open_round
from tests.e2e.pages import CHROMIUM, QUIET_FLAGS
from tests.emu_studio import postgres
from tests.emu_studio.served import Client, serving

NUM_ITEMS, NUM_FILES, NUM_KEYS = 200_000, 400, 300
DELAY = 0.2  # s
EVERY = 1000 / 3  # ms between two keys
BLANK = "the pictures were shown without a blank frame"

# Runs in the page. Painted: the frame after the one in which the picture stands in the page.
PRESS = """async ([num, every]) => {
  const frame = () => new Promise(requestAnimationFrame);
  const times = []; let blank = 0, ahead = 1e9;
  for (let i = 0; i < num; i++) {
    const due = performance.now() + every;
    const before = document.querySelector('#stage img')?.src;
    const start = performance.now();
    dispatchEvent(new KeyboardEvent('keydown', { key: 'k' }));
    for (;;) {
      await frame();
      const shown = document.querySelector('#stage img');
      if (!shown || !shown.complete || !shown.naturalWidth) { blank++; continue; }
      if (shown.src !== before) break;
    }
    await frame();
    times.push(performance.now() - start);
    while (performance.now() < due) await frame();
  }
  return { times, blank };
}"""
ASK = """async (num) => {
  const csrf = document.body.dataset.csrf, times = [];
  const post = async (path, body) => (await fetch(path, { method: 'POST', body: JSON.stringify(body),
    headers: { 'Content-Type': 'application/json', 'X-CSRF-Token': csrf } })).json();
  let [turn] = (await post('/api/rounds/specialist/turns', { num: 1 })).turns;
  for (let i = 0; i < num; i++) {
    const start = performance.now();
    const ballot = { ballot: `peer-${i}-${Math.random()}`.replace('.', '-'), item: turn.item, decision: 'keep' };
    await post('/api/rounds/specialist/votes', { ballots: [ballot] });
    [turn] = (await post('/api/rounds/specialist/turns', { num: 1 })).turns;
    const image = new Image();
    image.src = `/pictures/${turn.item}/0/view`;
    await image.decode();
    document.querySelector('#stage').replaceChildren(image);
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - start);
  }
  return times;
}"""


def write_pictures(folder: Path) -> list[Shown]:
    """Photographs' stand-ins: 1600 x 1067 px with grain, so that decoding costs what a photograph's does."""
    folder.mkdir()
    shown = []
    for number in range(NUM_FILES):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize(
            (1600, 1067), Image.Resampling.BICUBIC
        )
        grain = np.clip(np.asarray(coarse, np.int16) + rng.normal(0, 6, (1067, 1600, 1)), 0, 255).astype(np.uint8)
        path = folder / f"{number:04d}.jpg"
        Image.fromarray(grain).save(path, quality=85)
        shown.append(Shown(path, path.name, digest_picture(path.read_bytes())))
    return shown


def browse(folder: Path) -> tuple[list[float], int, list[float]]:
    """Milliseconds from key to picture, blank frames, and the peer's milliseconds."""
    from playwright.sync_api import sync_playwright

    files = write_pictures(folder / "pictures")
    items = [NewItem(f"{n:06d}", files[n % NUM_FILES].digest, (files[n % NUM_FILES],)) for n in range(NUM_ITEMS)]
    data = folder / "data"
    database = open_database(data / "studio" / "studio.db")
    open_round(database, default_plan("specialist", raters_per_item=1), items)
    database.close()
    with serving(data, delay=DELAY) as served, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_FLAGS)
        pages = []
        for name in ("Anna", "Ben"):
            page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
            page.goto(served.link(name, "specialist"), timeout=120_000)
            page.get_by_role("link", name="Begin").click()
            page.get_by_role("button", name="I agree").click()
            page.locator("#stage img").wait_for(timeout=120_000)
            pages.append(page)
        pages[0].wait_for_timeout(3000)  # as somebody who looks at the first picture
        found = pages[0].evaluate(PRESS, [NUM_KEYS, EVERY])
        peer = pages[1].evaluate(ASK, NUM_KEYS // 10)
        browser.close()
    return found["times"], found["blank"], peer


def vote_at_once(folder: Path, num_people: int, url: str | None) -> list[float]:
    """Milliseconds of each vote."""
    path = folder / "one.png"
    Image.new("RGB", (64, 64), "teal").save(path)
    shown = Shown(path, "one", digest_picture(path.read_bytes()))
    data = folder / "data"
    database = open_database(url or data / "studio" / "studio.db")
    items = [NewItem(f"{n:05d}", shown.digest, (shown,)) for n in range(6 * num_people)]
    open_round(database, default_plan("specialist", raters_per_item=1), items)
    tokens = [invite(database, f"person {n}", "specialist")[1] for n in range(num_people)]
    database.close()
    times: list[float] = []
    with serving(data, url) as served:
        people = [Client(served.address, token).join("specialist") for token in tokens]
        turns = [person.turns("specialist", 3) for person in people]
        gate = threading.Barrier(num_people)

        def work(person: Client, mine: list[dict[str, Any]], number: int) -> None:
            gate.wait()
            for place, turn in enumerate(mine):
                time.sleep(((number * 7 + place * 13) % 30) / 30)  # people press at times of their own, once a second
                start = time.perf_counter()
                answer = person.vote(
                    "specialist", {"ballot": f"bench-{number}-{place}", "item": turn["item"], "decision": "keep"}
                )
                assert answer.status_code == 200, answer.text
                times.append(1000 * (time.perf_counter() - start))

        threads = [
            threading.Thread(target=work, args=[person, mine, n])
            for n, (person, mine) in enumerate(zip(people, turns, strict=True))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(times) == 3 * num_people
    return times


def main() -> int:
    claims: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        times, blank, peer = browse(Path(temporary))
    p50, p95 = (float(np.percentile(times, share)) for share in (50, 95))
    print(f"{len(times)} keys, {1000 / EVERY:.0f} a second: median {p50:.0f} ms, p95 {p95:.0f}, most {max(times):.0f}")
    print(f"asking when the key is pressed: median {np.median(peer):.0f} ms, p95 {np.percentile(peer, 95):.0f}")
    claims.append(("key to next painted picture, p95 in ms at 200 000 items and 200 ms of latency", p95, 50))
    claims.append((f"frames without a picture; {BLANK}", blank, 0))
    with tempfile.TemporaryDirectory() as temporary:
        at_once = vote_at_once(Path(temporary), 50, None)
    claims.append(("50 people at once on SQLite, p95 of a vote in ms", float(np.percentile(at_once, 95)), 100))
    if postgres.is_here():
        with postgres.running() as server, tempfile.TemporaryDirectory() as temporary:
            at_once = vote_at_once(Path(temporary), 200, server.url)
        claims.append(("200 people at once on PostgreSQL, p95 of a vote in ms", float(np.percentile(at_once, 95)), 100))
    else:
        print("skipped: no PostgreSQL (Debian's package `postgresql`)")
    is_met = [value <= goal for _, value, goal in claims]
    for (name, value, goal), met in zip(claims, is_met, strict=True):
        print(f"claim {name}: {value:.3g} (goal at most {goal}){'' if met else '  MISSED'}")
    return 0 if all(is_met) else 1


if __name__ == "__main__":
    sys.exit(main())
