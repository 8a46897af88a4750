"""How fast the studio is for who chooses pictures, and for many at once: `make bench NAME=studio`.

A specialist presses a key three times a second for 300 photographs of 1600 px, in Chromium, with 200 ms put into every
answer of the server and 200 000 items in the round's queue. Measured in the page: from each key to the frame in which
the next picture is painted, and frames without a picture meanwhile. The peer is what annotation tools do whose users
complain of it (Label Studio #9101, darktable #9773): the same server, asked for the next picture when the key is
pressed.

Then people at once, who each press a key once a second (_people.py), on SQLite (50) and on PostgreSQL (200; skipped by
name where Debian's package is not installed): time of a vote from its key to its confirmation, on disk.

Ten minutes; the machine must be idle.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._people import Voted, vote_at_once
from emu_data.votes.vote import digest_picture
from emu_studio.database import open_database
from emu_studio.items import NewItem, Shown
from emu_studio.plan import default_plan
from emu_studio.rounds import open_round
from tests.e2e.pages import CHROMIUM, QUIET_FLAGS
from tests.emu_studio import postgres
from tests.emu_studio.served import serving

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


def report(who: str, voted: Voted) -> tuple[str, float, float]:
    """Print what many votes at once cost, and return the claim."""
    p50, p95 = (float(np.percentile(voted.times, share)) for share in (50, 95))
    print(f"{who}, a key a second each, {voted.rate:.0f} votes/s: median {p50:.0f} ms, p95 {p95:.0f}")
    print(f"  CPU ms per vote: studio {voted.studio:.2f}, its server {voted.database:.2f}, people {voted.people:.2f}")
    return f"{who}, p95 of a vote in ms", p95, 100


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
        claims.append(report("50 people at once on SQLite", vote_at_once(Path(temporary), 50, None)))
    if postgres.is_here():
        with postgres.running() as server, tempfile.TemporaryDirectory() as temporary:
            claims.append(report("200 people at once on PostgreSQL", vote_at_once(Path(temporary), 200, server)))
    else:
        print("skipped: no PostgreSQL (Debian's package `postgresql`)")
    is_met = [value <= goal for _, value, goal in claims]
    for (name, value, goal), met in zip(claims, is_met, strict=True):
        print(f"claim {name}: {value:.3g} (goal at most {goal}){'' if met else '  MISSED'}")
    return 0 if all(is_met) else 1


if __name__ == "__main__":
    sys.exit(main())
