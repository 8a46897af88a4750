"""Side by side: which picture stands where, in what order pairs come, and the page itself in a real browser."""

import io
import random
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import expect

from emu_data.votes.pairs import is_repeated
from emu_data.votes.vote import counted, counted_repeats
from emu_studio import people
from emu_studio.apart import keep_apart
from emu_studio.database import open_database
from emu_studio.items import NewItem, Shown, items_of_pairs
from emu_studio.people import invite
from emu_studio.plan import default_plan
from emu_studio.queue import Queue, Turn
from emu_studio.rounds import open_round
from tests.emu_studio.driving import PATIENCE, assert_no_violations, enter, saved, votes_of
from tests.emu_studio.served import Client, open_pictures, paint, serving

SIDES = ("left", "right")
PAIR = "[data-decision=right] img"  # there as soon as the left one is


def ballot(number: int, turn: dict[str, Any], decision: str, **more: Any) -> dict[str, Any]:
    return {"ballot": f"ballot-{number:06d}", "item": turn["item"], "is_repeat": turn["is_repeat"], **more} | {
        "decision": decision
    }


def num_next_to_each_other(prompts: list[int]) -> int:
    return sum(one == other for one, other in zip(prompts, prompts[1:], strict=False))


# ---- the order


@given(st.lists(st.integers(0, 4), max_size=14), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 20))
def test_no_prompt_comes_twice_in_a_row_where_any_order_avoids_it(
    prompts: list[int], again: list[int], num: int
) -> None:
    repeats = range(len(prompts), len(prompts) + len(again))
    found = keep_apart(range(len(prompts)), repeats, [*prompts, *again], None, num)
    most = max(Counter(prompts).values(), default=0)
    needed = max(0, most - (len(prompts) - most) - 1)  # what no order of the fresh ones avoids
    shown = [[*prompts, *again][place] for place, _ in found]
    assert num_next_to_each_other(shown) <= needed
    assert len({place for place, _ in found}) == len(found) <= num
    fresh = [place for place, is_repeat in found if not is_repeat]
    assert len(fresh) == len(prompts) or len(found) == num  # nothing is held back but repeats
    assert all((place in repeats) == is_repeat for place, is_repeat in found)


@pytest.mark.parametrize("seed", range(6))
def test_no_prompt_comes_twice_in_a_row_across_batches_and_restarts(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three comparisons per prompt in one round, taken in batches of any size while votes come in."""
    monkeypatch.setattr(people.secrets, "token_hex", lambda num: "0" * 2 * num)  # repeats depend on the pseudonym
    rng = random.Random(seed)
    database = open_database(tmp_path / "studio.db")
    pictures = (Shown(Path("a"), "A", "0"), Shown(Path("b"), "B", "0"))
    items = [NewItem(f"{p}-{c}", "0", pictures, stratum=f"prompt {p}") for p in range(12) for c in range(3)]
    plan = default_plan("appeal", seed=seed, repeat_share=0.5)
    round_ = open_round(database, plan, items)
    queue, (person, _) = Queue(database, round_), invite(database, "Anna", "rater")
    shown, waiting, seen = [], [], set()
    while True:
        if rng.random() < 0.4 or not waiting:  # as a page: all that is held comes again, it adds what it does not know
            taken = queue.take(person, 1 + len(waiting) + rng.randrange(6))
            new = [turn for turn in taken if (turn.place, turn.is_repeat) not in seen]
            seen |= {(turn.place, turn.is_repeat) for turn in new}
            waiting += new
        if not waiting:
            break
        turn = waiting.pop(0)
        shown.append(turn)
        queue.note(person, turn.item_id, rng.choice(["A", "B", "tie", "skipped"]), turn.is_repeat)
    prompts = [int(queue.prompts[turn.place]) for turn in shown]
    assert num_next_to_each_other(prompts) == 0
    assert sorted(turn.place for turn in shown if not turn.is_repeat) == list(range(len(items)))
    assert sum(turn.is_repeat for turn in shown) >= 3
    database.close()


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_what_others_began_is_finished_first(num_of_a_prompt: int, num_raters: int, seed: int) -> None:
    """Raters of any pace, who each hold some pairs ahead: nobody is given a prompt that nobody else began while another
    one that somebody began is open for them; and still no prompt comes twice in a row."""
    rng, needed, num_prompts = random.Random(seed), 2, 14
    with TemporaryDirectory() as folder:
        database = open_database(Path(folder) / "studio.db")
        pictures = (Shown(Path("a"), "A", "0"), Shown(Path("b"), "B", "0"))
        names = [(p, c) for p in range(num_prompts) for c in range(num_of_a_prompt)]
        items = [NewItem(f"{p}-{c}", "0", pictures, stratum=f"prompt {p}") for p, c in names]
        plan = default_plan("appeal", raters_per_item=needed, repeat_share=0.3)
        queue = Queue(database, open_round(database, plan, items))
        people = [invite(database, f"person {n}", "rater")[0] for n in range(num_raters)]
        paces = [rng.uniform(0.1, 1) for _ in people]
        prompts = queue.prompts.tolist()
        held: dict[int, list[Turn]] = {n: [] for n in range(num_raters)}
        seen: dict[int, list[Turn]] = {n: [] for n in range(num_raters)}
        idle: set[int] = set()
        while len(idle) < num_raters:
            (n,) = rng.choices(range(num_raters), paces)
            if not held[n] or rng.random() < 0.3:
                others = [turn for m in held if m != n for turn in (*held[m], *seen[m]) if not turn.is_repeat]
                begun = {prompts[turn.place] for turn in others}
                own = {turn.place for turn in (*held[n], *seen[n]) if not turn.is_repeat}
                is_free = queue.num_votes + queue.num_leased < needed
                open_ = {place for place in np.flatnonzero(is_free).tolist() if place not in own}
                before = (held[n] or seen[n] or [None])[-1]
                taken = queue.take(people[n], len(held[n]) + rng.randint(1, 4))
                for turn in taken[len(held[n]) :]:
                    if not turn.is_repeat:
                        last = before and prompts[before.place]
                        other = [p for p in open_ if prompts[p] in begun and prompts[p] != last]
                        is_alone = Counter(prompts[p] for p in open_)[prompts[turn.place]] * 2 > len(open_)
                        assert prompts[turn.place] in begun or not other or is_alone
                        open_.remove(turn.place)
                    before = turn
                held[n] = taken
            if held[n]:
                turn = held[n].pop(0)
                seen[n].append(turn)
                queue.note(people[n], turn.item_id, rng.choice(["A", "B", "tie"]), turn.is_repeat)
            else:
                idle.add(n)
        database.close()
    assert (queue.num_votes == needed).all()
    for turns in seen.values():
        firsts = [turn.place for turn in turns if not turn.is_repeat]
        assert len(set(firsts)) == len(firsts)
        if num_of_a_prompt == 1:
            assert num_next_to_each_other([prompts[turn.place] for turn in turns]) == 0


def test_half_of_the_votes_finish_a_good_part_of_the_prompts(tmp_path: Path, url: str | None) -> None:
    """Half of the votes of nine raters: by orders that are each rater's own alone, they finish 9 of 120 prompts."""
    database = open_database(url or tmp_path / "studio.db")
    pictures = (Shown(Path("a"), "A", "0"), Shown(Path("b"), "B", "0"))
    items = [NewItem(f"{n}", "0", pictures, stratum=f"prompt {n}") for n in range(120)]
    queue = Queue(database, open_round(database, default_plan("appeal"), items))
    people = [invite(database, f"person {n}", "rater")[0] for n in range(9)]
    num = 0
    while num < 120 * 5 // 2:
        for person in people:
            (turn,) = queue.take(person, 1)
            queue.note(person, turn.item_id, "A", turn.is_repeat)
            num += not turn.is_repeat
    database.close()
    assert queue.num_finished >= 45


# ---- the sides, by the addresses


def nearest(data: bytes, files: list[Path]) -> int:
    """Which of the painted pictures a preview shows."""

    def small(image: Image.Image) -> np.ndarray:
        return np.asarray(image.convert("RGB").resize((8, 6), Image.Resampling.BOX), float)

    shown = small(Image.open(io.BytesIO(data)))
    return int(np.argmin([np.abs(shown - small(Image.open(file))).mean() for file in files]))


def on_the_left(client: Client, turn: dict[str, Any], files: list[Path]) -> tuple[str, str]:
    """The key of the pair whose picture stands left, and whether it is A's or B's; by pixels."""
    seen = []
    for number in (0, 1):
        answer = client.http.get(f"/pictures/{turn['item']}/{number}/view", params={"repeat": turn["is_repeat"]})
        assert answer.status_code == 200 and answer.headers["vary"] == "Cookie"
        seen.append(nearest(answer.content, files))
    assert seen[0] // 2 == seen[1] // 2 and seen[0] != seen[1]
    return f"{seen[0] // 2:04d}", "AB"[seen[0] % 2]


@pytest.mark.slow
def test_votes_are_for_the_model_that_stood_where_it_was_clicked_and_repeats_are_swapped(
    tmp_path: Path, url: str | None
) -> None:
    """By pixels, over raters and pairs; about half of the pairs are shown again, at least ten pairs later."""
    num, rng = 24, random.Random(0)
    open_pictures(tmp_path / "data", "appeal", num, url, raters_per_item=3, repeat_share=0.5)
    files = sorted((tmp_path / "pictures of appeal").glob("*.png"))
    expected: dict[tuple[int, str, bool], tuple[str, str]] = {}
    lefts, places, order = {}, {}, {}
    with serving(tmp_path / "data", url) as served:
        for rater in range(3):
            client = served.person(f"Rater {rater}", "rater").join("appeal")
            count = 0
            while turns := client.turns("appeal", 1):
                (turn,) = turns
                assert set(turn) == {"item", "is_repeat", "num_pictures", "group"}  # no prompt, no name
                key, left = on_the_left(client, turn, files)
                lefts[rater, key, turn["is_repeat"]] = left
                places[rater, key, turn["is_repeat"]] = count
                order[rater, key, turn["is_repeat"]] = sum(r == rater and not again for r, _, again in order)
                side = rng.choice(SIDES)
                chosen = left if side == "left" else "BA"["AB".index(left)]
                expected[rater, key, turn["is_repeat"]] = (chosen, left + "BA"["AB".index(left)])
                assert client.vote("appeal", ballot(count, turn, side)).status_code == 200
                count += 1
        votes = votes_of(served, "appeal")
    raters = list(dict.fromkeys(vote.rater for vote in votes))
    found = {(raters.index(v.rater), v.key, v.is_repeat): (v.decision, v.side_order) for v in votes}
    assert found == expected
    for (rater, key, is_repeat), left in lefts.items():
        if is_repeat:
            assert left != lefts[rater, key, False] and places[rater, key, True] - places[rater, key, False] > 10
    # Who is shown which pair again was drawn; the last ten come too late for it.
    again = {key for key in lefts if key[2]}
    firsts = {(rater, key): place for (rater, key, is_repeat), place in order.items() if not is_repeat}
    drawn = {(r, key, True) for r, key in firsts if is_repeated(0, raters[r], key, 0.5) and firsts[r, key] < num - 10}
    assert again == drawn and len(again) > 10 and len(firsts) == 3 * num
    first = [left for (_, _, is_repeat), left in lefts.items() if not is_repeat]
    assert 0.3 < first.count("A") / len(first) < 0.7
    for key in {key for _, key, _ in lefts}:  # sides are each rater's own
        assert len({lefts[rater, key, False] for rater in range(3)}) <= 2
    assert any(len({lefts[rater, key, False] for rater in range(3)}) == 2 for _, key, _ in lefts)
    seen = {vote.key: vote.seen for vote in votes}
    assert len(counted(votes, seen)) == 3 * num and len(counted_repeats(votes, seen)) == len(again)


@pytest.mark.slow
def test_who_chose_pictures_does_not_judge_unless_the_plan_says_so(tmp_path: Path, url: str | None) -> None:
    data, roles = tmp_path / "data", ("generalist",)
    open_pictures(data, "generalist", 6, url)
    open_pictures(data, "appeal", 3, url, roles=roles)
    open_pictures(data, "faithfulness", 3, url, roles=roles, judges_may_choose=True)
    with serving(data, url) as served:
        anna = served.person("Anna", "generalist").join("generalist").join("appeal")
        (turn,) = anna.turns("appeal", 1)
        assert anna.vote("generalist", ballot(0, anna.turns("generalist", 1)[0], "drop")).status_code == 200
        assert anna.post("/api/rounds/appeal/turns", {"num": 1}).status_code == 403
        assert anna.vote("appeal", ballot(1, turn, "left")).status_code == 403
        assert anna.http.get(f"/pictures/{turn['item']}/0/view").status_code == 403
        assert "do not judge" in anna.http.get("/").text
        assert len(anna.join("faithfulness").turns("faithfulness", 1)) == 1
        assert served.person("Ben", "generalist").join("appeal").turns("appeal", 1)


# ---- the page


def sources(page: Any) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('#pair img')].map(i => i.getAttribute('src'))")


def wait_for_another(page: Any, before: list[str]) -> None:
    page.wait_for_function(
        "src => document.querySelector('#pair img')?.getAttribute('src') !== src", arg=before[0], timeout=PATIENCE
    )


def press(page: Any, key: str) -> list[str]:
    """Press a key after which another pair comes; return what was shown before."""
    before = sources(page)
    page.keyboard.press(key)
    wait_for_another(page, before)
    return before


PIXELS = """side => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
  const context = canvas.getContext("2d");
  context.drawImage(document.querySelector(`[data-decision=${side}] img`), 0, 0, 64, 48);
  return canvas.toDataURL("image/png");
}"""


def painted(page: Any, side: str, files: list[Path]) -> int:
    """Which picture a side shows, by what the browser paints."""
    import base64

    return nearest(base64.b64decode(page.evaluate(PIXELS, side).partition(",")[2]), files)


@pytest.mark.browser
@pytest.mark.slow
def test_appeal_by_clicks_and_keys(tmp_path: Path, browser: Any) -> None:
    """Two raters after each other in one browser, whose cache must not show one the other's sides."""
    num = 12
    open_pictures(tmp_path / "data", "appeal", num, raters_per_item=2, repeat_share=0.0)
    files = sorted((tmp_path / "pictures of appeal").glob("*.png"))
    rng, expected = random.Random(1), {}
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    ways = {"left": ["ArrowLeft", "f", "F", None], "right": ["ArrowRight", "j", None, None]}
    with serving(tmp_path / "data") as served:
        for rater in range(2):
            enter(page, served, "rater", PAIR, f"Rater {rater}")
            assert_no_violations(page)
            assert "prompt" not in page.content()
            for number in range(num):
                before = sources(page)
                shown = [painted(page, side, files) for side in SIDES]
                assert shown[0] // 2 == shown[1] // 2 and shown[0] != shown[1]
                side = rng.choice([*SIDES, *SIDES, "tie"])
                key = "t" if side == "tie" else rng.choice(ways[side])
                if key:
                    page.keyboard.press(key)
                else:
                    page.locator(f"[data-decision={side}]").click(position={"x": 300, "y": 300})
                    page.wait_for_timeout(600)  # a second click sooner at the same place is a double click
                model = "tie" if side == "tie" else "AB"[shown[SIDES.index(side)] % 2]
                expected[rater, f"{shown[0] // 2:04d}"] = model
                if number < num - 1:
                    wait_for_another(page, before)
            page.get_by_text("Nothing is left for you now").wait_for()
            saved(page)
            assert_no_violations(page)
        votes = votes_of(served, "appeal")
    context.close()
    raters = list(dict.fromkeys(vote.rater for vote in votes))
    assert {(raters.index(vote.rater), vote.key): vote.decision for vote in votes} == expected
    assert len(votes) == 2 * num and all(vote.seconds for vote in votes)


@pytest.mark.browser
@pytest.mark.slow
def test_faithfulness_shows_the_text_and_nothing_of_it_is_markup(tmp_path: Path, page: Any) -> None:
    data = tmp_path / "data"
    prompt = "<script>document.title = 'x'</script> \"one\" & 'two' <b>red</b> " + "apples " * 60
    files = sorted(paint(tmp_path / "pictures", 12).glob("*.png"))
    items = items_of_pairs([(f"{n}", files[2 * n], files[2 * n + 1], f"{prompt}{n}") for n in range(6)], True)
    database = open_database(data / "studio" / "studio.db")
    open_round(database, default_plan("faithfulness", raters_per_item=1), items)
    with serving(data) as served:
        enter(page, served, "rater", PAIR)
        assert_no_violations(page)
        assert page.locator("#caption").inner_text()[: len(prompt)] == prompt
        assert page.locator("#caption *").count() == 0 and page.title() == "faithfulness"
        wanted = ["both", "neither", "left", "right"]
        for key in ("b", "n", "f", "ArrowRight"):
            press(page, key)
        page.keyboard.press("t")  # no key here
        before = sources(page)
        page.keyboard.press("s")
        assert_no_violations(page)
        page.keyboard.press("Enter")  # without a reason nothing is skipped
        assert page.locator("#skip").get_attribute("open") is not None
        page.keyboard.type("f and j and b are letters here")
        page.keyboard.press("Enter")
        wait_for_another(page, before)
        page.keyboard.press("?")
        assert_no_violations(page)
        page.keyboard.press("b")  # not while the guideline is open
        page.keyboard.press("Escape")
        page.locator("#pair button").first.focus()
        page.keyboard.press("Enter")  # a picture is a button
        page.get_by_text("Nothing is left for you now").wait_for()
        saved(page)
        votes = votes_of(served, "faithfulness")
    said = [vote.decision for vote in votes]
    assert said[:2] == wanted[:2] and {*said[2:4], said[5]} <= {"A", "B"} and len(said) == 6
    assert (votes[4].decision, votes[4].reason) == ("skipped", "f and j and b are letters here")
    assert said[2:4] == [votes[2].side_order[0], votes[3].side_order[1]]


FRAMES = """(() => {
  window.frames_ = [];
  const look = () => {
    const isSeen = (image) => getComputedStyle(image).visibility === 'visible';
    const images = [...document.querySelectorAll('#pair img')].filter(isSeen);
    window.frames_.push(images.map(i => [i.getAttribute('src').split('/')[2], i.complete && i.naturalWidth > 0]));
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})()"""


@pytest.mark.browser
@pytest.mark.slow
def test_both_pictures_appear_at_once_at_the_same_size(tmp_path: Path, page: Any) -> None:
    """A's are drawn four times as large as B's, and whatever stands right comes late."""
    data = tmp_path / "data"
    small = sorted(paint(tmp_path / "small", 8).glob("*.png"))
    large = sorted(paint(tmp_path / "large", 8, (256, 192)).glob("*.png"))
    database = open_database(data / "studio" / "studio.db")
    items = items_of_pairs([(f"{n}", large[n], small[n], f"prompt {n}") for n in range(8)], False)
    open_round(database, default_plan("appeal", raters_per_item=1, repeat_share=0.0), items)

    def late(route: Any) -> None:
        page.wait_for_timeout(150)
        route.continue_()

    page.add_init_script(FRAMES)
    page.route("**/pictures/*/1/view*", late)
    with serving(data) as served:
        enter(page, served, "rater", PAIR)
        for _ in range(6):
            left, right = (page.locator(f"[data-decision={side}] img").bounding_box() for side in SIDES)
            assert (left["width"], left["height"], left["y"]) == (right["width"], right["height"], right["y"])
            assert left["width"] > 600 and left["height"] > 500  # pixels of the window: large, whatever the file's size
            press(page, "f")
        frames = page.evaluate("window.frames_")
        # 1:1 of both while the key is held: each at its own size, closed when it is released.
        page.keyboard.down("z")
        page.wait_for_function("() => document.querySelectorAll('#zoom .pixels img').length === 2")
        assert_no_violations(page)
        boxes = [one.bounding_box()["width"] for one in page.locator("#zoom .pixels img").all()]
        assert sorted(boxes) == [64, 256]
        page.keyboard.up("z")
        assert page.locator("#zoom").get_attribute("open") is None
        before = sources(page)
        page.locator("#pair button").first.hover()
        page.mouse.down(button="right")
        page.wait_for_function("() => document.querySelectorAll('#zoom .pixels img').length === 2")
        page.mouse.up(button="right")
        assert page.locator("#zoom").get_attribute("open") is None and sources(page) == before
    assert len(frames) > 20
    for images in frames:  # never one without the other, never of two pairs
        assert len(images) in (0, 2) and len({item for item, _ in images}) <= 1 and all(ready for _, ready in images)


@pytest.mark.browser
@pytest.mark.slow
def test_a_large_picture_zoomed_moves_both(tmp_path: Path, page: Any) -> None:
    data = tmp_path / "data"
    first, second = sorted(paint(tmp_path / "pictures", 2, (2400, 1800)).glob("*.png"))
    database = open_database(data / "studio" / "studio.db")
    open_round(database, default_plan("appeal"), items_of_pairs([("0", first, second, "prompt")], False))
    seen = "[...document.querySelectorAll('#zoom .pixels')].map(p => [p.scrollLeft, p.scrollTop])"
    with serving(data) as served:
        enter(page, served, "rater", PAIR)
        page.keyboard.down("z")
        page.wait_for_function("() => document.querySelectorAll('#zoom .pixels img').length === 2")
        left, right = page.evaluate(seen)
        assert left == right and left[0] > 500  # its centre
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        moved, also = page.evaluate(seen)
        assert moved == also and moved[0] > left[0] and moved[1] > left[1]
        page.keyboard.up("z")
        page.locator("#pair img").first.wait_for()
        saved(page)
        assert votes_of(served, "appeal") == []  # arrows moved, they did not decide


@pytest.mark.browser
@pytest.mark.slow
def test_ten_decisions_can_be_taken_back_and_a_double_click_is_one(tmp_path: Path, page: Any) -> None:
    open_pictures(tmp_path / "data", "appeal", 14, raters_per_item=1, repeat_share=0.0)
    with serving(tmp_path / "data") as served:
        enter(page, served, "rater", PAIR)
        page.keyboard.press("Backspace")
        page.get_by_text("There is nothing to take back").wait_for()
        seen = []
        for _ in range(12):
            seen.append(press(page, "f"))
        for earlier in reversed(seen[2:]):
            page.keyboard.press("Backspace")
            assert sources(page) == earlier  # at once, with the same sides
        page.keyboard.press("Backspace")
        page.get_by_text("There is nothing to take back").wait_for()
        saved(page)
        votes = votes_of(served, "appeal")
        assert len(counted(votes, {vote.key: vote.seen for vote in votes})) == 2
        page.reload()
        page.locator("#pair img").nth(1).wait_for()
        assert sources(page) == seen[2]  # what was taken back last is asked about first
        page.locator("[data-decision=right]").dblclick()
        wait_for_another(page, seen[2])
        page.wait_for_timeout(600)
        saved(page)
        for _ in range(10):
            press(page, "j")
        page.keyboard.press("j")
        page.get_by_text("Nothing is left for you now").wait_for()
        page.keyboard.press("Backspace")  # also from here
        page.locator("#pair img").nth(1).wait_for()
        page.keyboard.press("t")
        page.get_by_text("Nothing is left for you now").wait_for()
        saved(page)
        votes = votes_of(served, "appeal")
    last = counted(votes, {vote.key: vote.seen for vote in votes})
    assert len(last) == 14 and [vote.decision for vote in last].count("tie") == 1
    right = [vote for vote in last if vote.decision == vote.side_order[1]]
    assert len(right) == 11 and len(votes) == 12 + 10 + 12 + 2


@pytest.mark.browser
@pytest.mark.slow
def test_reload_back_and_a_lost_network_lose_and_double_nothing(tmp_path: Path, page: Any) -> None:
    open_pictures(tmp_path / "data", "appeal", 16, raters_per_item=1, repeat_share=0.0)
    with serving(tmp_path / "data") as served:
        enter(page, served, "rater", PAIR)
        for way in (page.reload, lambda: (page.go_back(), page.go_forward())):
            press(page, "f")
            way()
            page.locator("#pair img").nth(1).wait_for()
        page.route("**/votes", lambda route: route.abort())
        before = sources(page)
        page.keyboard.press("f")
        page.get_by_text("1 not saved").wait_for()
        page.reload()
        page.locator("#pair img").nth(1).wait_for()
        assert sources(page) != before  # what was decided and is not saved is not asked again
        page.unroute("**/votes")
        saved(page)
        loaded = "performance.getEntriesByType('resource').filter(one => one.name.includes('/1/view'))"
        page.wait_for_function(f"() => {loaded}.length > 6")
        page.context.set_offline(True)
        for _ in range(3):
            press(page, "j")
        page.get_by_text("3 not saved").wait_for()
        assert_no_violations(page)
        page.context.set_offline(False)
        saved(page)
        page.reload()
        page.locator("#pair img").nth(1).wait_for()
        for _ in range(9):
            press(page, "f")
        page.keyboard.press("f")
        page.get_by_text("Nothing is left for you now").wait_for()
        saved(page)
        votes = votes_of(served, "appeal")
    assert len(votes) == 16 and len({vote.key for vote in votes}) == 16
    assert all(vote.decision == vote.side_order[0] for vote in votes[:2])


@pytest.mark.browser
@pytest.mark.slow
def test_somebody_else_in_the_same_browser_changes_no_sides(tmp_path: Path, browser: Any) -> None:
    """Anna's page is left open, Ben comes in: her page gets no picture of his, and sends no vote under his name."""
    open_pictures(tmp_path / "data", "appeal", 12, raters_per_item=2, repeat_share=0.0)
    context = browser.new_context()
    with serving(tmp_path / "data") as served:
        first, second = context.new_page(), context.new_page()
        enter(first, served, "rater", PAIR)
        enter(second, served, "rater", PAIR, "Ben")
        answer = first.request.get(served.address + sources(first)[0].replace("/view", "/tile"))
        assert answer.status == 403
        first.keyboard.press("f")
        first.get_by_text("1 not saved").wait_for()
        expect(first.locator("#problem")).to_contain_text("out of date")
        second.keyboard.press("j")
        saved(second)
        votes = votes_of(served, "appeal")
    context.close()
    assert len(votes) == 1 and votes[0].decision == votes[0].side_order[1]
