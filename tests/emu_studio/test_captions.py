"""Captions written by hand: what is checked, what is kept, and the page itself in a real browser."""

import json
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import expect

from emu_studio.caption_checks import check_captions, count_sentences, count_words, edit_distance
from emu_studio.captions import GivenCaptions, list_captions, list_versions, read_drafts, save, with_drafts
from emu_studio.database import Caption, Database, open_database
from emu_studio.items import items_of_folder
from emu_studio.people import Person, invite
from emu_studio.plan import default_plan
from emu_studio.queue import Queue
from emu_studio.rounds import Changes, amend, find_round, open_round
from tests.emu_studio.driving import PATIENCE, assert_no_violations, enter, saved
from tests.emu_studio.served import Served, paint, serving

SHORT, LONG = "a soft patch of green light", "A soft patch of green light lies over darker ground. Its edges fade."
WORDS = ("a", "red", "boat", "lies", "on", "quiet", "water", "under", "pale", "evening", "light", "lighthouse")
NASTY = "<script>document.title = 'x'</script> \"quotes\" & 'more' <img src=x onerror=alert(1)>"


# ---- the checks


def codes(short: str, long: str, **more: Any) -> set[tuple[str, str]]:
    return {(one.field, one.code) for one in check_captions(short, long, **more)}


def test_good_captions_have_no_finding():
    others = [("a boy on a bicycle", "A boy rides a bicycle along a canal. It is early morning.")]
    assert codes(SHORT, LONG, old="IMG_0012.jpg green background wallpaper", others=others) == set()
    assert codes("a 1950s car in 3D light", "A car of the 1950s, e.g. in a film.", old="1950s car") == set()


@pytest.mark.parametrize(
    ("short", "long", "more", "expected"),
    [
        ("a patch", LONG, {}, ("short", "length")),
        (" ".join(["light"] * 13), LONG, {}, ("short", "length")),
        (SHORT, "One. Two! Three? Four.", {}, ("long", "length")),
        (SHORT, "...", {}, ("long", "length")),
        (SHORT, SHORT + ".", {}, ("long", "length")),
        ("an image of green light", LONG, {}, ("short", "boilerplate")),
        ("A Picture of green light", LONG, {}, ("short", "boilerplate")),
        (SHORT, "This photo shows green light.", {}, ("long", "boilerplate")),
        (SHORT, "Green light, royalty-free stock photo.", {}, ("long", "boilerplate")),
        (SHORT, LONG, {"others": [("A soft patch of green light!", "Else.")]}, ("short", "duplicate")),
        (SHORT, LONG, {"others": [("else", LONG.replace("fade", "blur"))]}, ("long", "duplicate")),
        (SHORT, "Green light of DSC_0012 lies there.", {"old": "dsc_0012 green"}, ("long", "leftover")),
        ("green light and moss A1234", LONG, {"old": "item a1234"}, ("short", "leftover")),
        (SHORT, LONG, {"old": "Buy now: its edges fade. A soft patch of green light lies"}, ("long", "leftover")),
        ("some warm evening light", LONG, {"old": "Warm evening light"}, ("short", "leftover")),
        (SHORT, LONG, {"draft": (SHORT, "Else.")}, ("short", "draft")),
    ],
)
def test_what_the_checks_find(short: str, long: str, more: dict[str, Any], expected: tuple[str, str]):
    assert expected in codes(short, long, **more)


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=24), st.data())
def test_no_near_duplicate_is_overlooked(words: list[str], data: st.DataObject):
    """The search for likely ones against difflib's ratio of all."""
    others = []
    for _ in range(3):
        other = list(words)
        for _ in range(data.draw(st.integers(0, 4))):
            place = data.draw(st.integers(0, len(other)))
            other[place : place + data.draw(st.integers(0, 1))] = data.draw(
                st.lists(st.sampled_from(WORDS), max_size=1)
            )
        others.append(" ".join(other))
    ratios = [SequenceMatcher(None, other.split(), words, autojunk=False).ratio() for other in others]
    found = ("short", "duplicate") in codes(" ".join(words), LONG, others=[(other, "") for other in others])
    assert found == any(ratio >= 0.9 for ratio in ratios)


def test_words_and_sentences_are_counted_in_any_script():
    assert count_words("l’été, it's 3 well-known 光 слова") == 6
    texts = {"": 0, "One": 1, "One. Two": 2, "Wait… what?! “Yes.” No": 4, "一。二。": 2, "3.5 m, e.g. a boat.": 2}
    assert {text: count_sentences(text) for text in texts} == texts  # of abbreviations it knows nothing


@settings(max_examples=60)
@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=20), st.text("abc", max_size=20))
def test_the_edit_distance_is_levenshteins(first: str, second: str):
    """DuckDB's as the oracle."""
    (expected,) = CONNECTION.execute("SELECT levenshtein(?, ?)", [first, second]).fetchone()  # pyrefly: ignore
    assert edit_distance(first, second) == edit_distance(second, first) == expected


CONNECTION = duckdb.connect()


def test_the_edit_distance_counts_characters_of_any_script():
    assert edit_distance("日本の夜", "日本夜") == 1 and edit_distance("é", "z") == 1 and edit_distance("", "😀a") == 2


# ---- what is kept


@pytest.fixture
def round_(tmp_path: Path, url: str | None) -> Iterator[tuple[Database, Queue, Person]]:
    """A round of captions over six pictures, the first with a draft, and a specialist."""
    database = open_database(url or tmp_path / "studio.db")
    (tmp_path / "drafts.jsonl").write_text(json.dumps(draft("0000.png")) + "\n")
    items = with_drafts(items_of_folder(paint(tmp_path / "pictures", 6)), read_drafts(tmp_path / "drafts.jsonl").get)
    queue = Queue(database, open_round(database, default_plan("captions"), items))
    yield database, queue, invite(database, "Anna", "specialist")[0]
    database.close()


def draft(key: str, short: str = "soft patches of light", long: str = "Soft patches of light.") -> dict[str, str]:
    return {"key": key, "short": short, "long": long, "model": "captioner-1"}


def written(queue: Queue, place: int = 0, number: int = 0, **more: Any) -> GivenCaptions:
    given = {"ballot": f"ballot-{number}", "item": int(queue.ids[place]), "short": SHORT, "long": LONG}
    return GivenCaptions.model_validate({**given, **more})


def test_every_version_is_kept_and_the_last_counts(round_: tuple[Database, Queue, Person]):
    database, queue, anna = round_
    ben, _ = invite(database, "Ben", "specialist")
    (first,) = save(database, queue, anna, [written(queue)])
    assert save(database, queue, anna, [written(queue, short="another text")])[0].version == first.version  # a key once
    assert not save(database, queue, anna, [written(queue, number=1)])[0].is_new  # the same words: another tab
    save(database, queue, ben, [written(queue, number=1, short="light, by somebody else")])
    save(database, queue, anna, [written(queue, number=2)])  # the words of before, after others: a version
    versions = list_versions(database, queue, int(queue.ids[0]))
    assert [(one.short, one.rater_id) for one in versions] == [
        (SHORT, anna.id),
        ("light, by somebody else", ben.id),
        (SHORT, anna.id),
    ]
    assert all(one.time and one.long == LONG and one.draft == "" and one.distance is None for one in versions)
    assert {key: one.id for key, one in list_captions(database, queue.round.id).items()} == {"0000.png": versions[2].id}


def test_an_item_with_a_caption_is_finished_also_after_a_restart(round_: tuple[Database, Queue, Person]):
    database, queue, anna = round_
    ben, _ = invite(database, "Ben", "specialist")
    (turn,) = queue.take(anna, 1)
    assert turn.item_id not in [one.item_id for one in queue.take(ben, 6)]  # leased
    queue.release(ben.id)
    save(database, queue, anna, [written(queue, turn.place)])
    for one in (queue, Queue(database, queue.round)):
        assert one.num_finished == 1 and one.num_left(ben) == 5 and one.num_decided(anna) == 1
        assert turn.item_id not in [taken.item_id for taken in one.take(ben, 6)] and not one.take(anna, 6)
        one.note(anna, turn.item_id, "skipped", False)  # what is said later does not take the captions away
        assert one.num_finished == 1
        one.release(ben.id)


def test_a_draft_is_kept_with_its_distance_and_flagged_where_it_is_unedited(round_: tuple[Database, Queue, Person]):
    database, queue, anna = round_
    before = draft("0000.png")
    texts: list[dict[str, Any]] = [
        {"short": before["short"], "long": "Soft patches of pale light.", "used_draft": True},
        {"short": SHORT, "long": LONG},  # written without it
        {"short": SHORT, "long": before["long"]},  # the page says that it was not used, the words say that it was
        {"short": "soft patch of light", "long": "Soft patch of light.", "used_draft": True},
    ]
    for number, given_texts in enumerate(texts):
        save(database, queue, anna, [written(queue, number=number, **given_texts)])
    versions = list_versions(database, queue, int(queue.ids[0]))
    assert [one.unedited for one in versions] == [["short"], [], ["long"], []]
    assert [one.draft for one in versions] == [f"{before['short']}\n\n{before['long']}", "", *[versions[0].draft] * 2]
    assert versions[0].distance == 5 and versions[1].distance is None and versions[3].distance == 4
    flagged = [one["field"] for one in versions[0].findings if one["code"] == "draft"]
    assert flagged == ["short"]
    save(database, queue, anna, [written(queue, 1, 9, used_draft=True)])  # there is none
    assert list_captions(database, queue.round.id)["0001.png"].draft == ""


def test_what_was_saved_in_spite_of_the_checks_is_kept_with_it(round_: tuple[Database, Queue, Person]):
    database, queue, anna = round_
    save(database, queue, anna, [written(queue, short="image of light", known=["short boilerplate"])])
    save(database, queue, anna, [written(queue, 1, 1)])
    found = list_captions(database, queue.round.id)
    assert [(one["field"], one["code"], one["is_known"]) for one in found["0000.png"].findings] == [
        ("short", "boilerplate", True)
    ]
    assert [(one["code"], one["is_known"]) for one in found["0001.png"].findings] == [("duplicate", False)]


@pytest.mark.parametrize("text", ["", "{}", '{"key": 1, "short": "", "long": "", "model": ""}', "[1]", "{"])
def test_a_file_of_drafts_is_read_or_refused_with_the_line(tmp_path: Path, text: str):
    file = tmp_path / "drafts.jsonl"
    file.write_text(json.dumps(draft("a")) + "\n\n" + text)
    if not text:
        assert read_drafts(file)["a"].model == "captioner-1"
        return
    with pytest.raises(ValueError, match="line 3"):
        read_drafts(file)


def test_one_person_captions_a_picture():
    with pytest.raises(ValueError, match="raters_per_item"):
        default_plan("captions", raters_per_item=2)


# ---- the addresses


def open_captions(data: Path, num: int, url: str | None = None, drafts: Sequence[str] = ()) -> None:
    paint(data.parent / "pictures", num)
    open_over(data, url, drafts)


def open_over(data: Path, url: str | None = None, drafts: Sequence[str] = ()) -> None:
    """A round over the pictures and texts as they are."""
    database = open_database(url or data / "studio" / "studio.db")
    items = items_of_folder(data.parent / "pictures")
    file = data.parent / "drafts.jsonl"
    file.write_text("\n".join(json.dumps(draft(key)) for key in drafts))
    open_round(database, default_plan("captions"), with_drafts(items, read_drafts(file).get))
    database.close()


def versions_of(served: Served) -> list[Caption]:
    from sqlalchemy import select

    database = open_database(served.url or served.data / "studio" / "studio.db")
    with database.read() as session:
        found = list(session.scalars(select(Caption).order_by(Caption.id)))
    database.close()
    return found


def close(served: Served) -> None:
    database = open_database(served.url or served.data / "studio" / "studio.db")
    amend(database, "captions", "lead-1", "enough", Changes(closed=True))
    assert find_round(database, "captions").closed
    database.close()


@pytest.mark.slow
def test_the_server_keeps_texts_as_they_are_and_takes_nothing_from_strangers(tmp_path: Path, url: str | None):
    data = tmp_path / "data"
    open_captions(data, 4, url)
    paint(tmp_path / "others", 2)
    with serving(data, url) as served:
        anna = served.person("Anna", "specialist").join("captions")
        turns = anna.turns("captions", 4)
        assert set(turns[0]) == {"item", "is_repeat", "num_pictures", "draft"} and turns[0]["draft"] is None
        one = {"ballot": "ballot-0001", "item": turns[0]["item"], "short": NASTY, "long": f"  {NASTY}\n\nend\0 "}
        path = "/api/rounds/captions/captions"
        answer = anna.post(path, {"captions": [one]})
        assert answer.status_code == 200 and answer.json()["confirmed"][0]["is_new"]
        found = anna.http.get(f"{path}/{one['item']}").json()["versions"]
        assert [(v["short"], v["long"], v["by"]) for v in found] == [
            (NASTY, f"{NASTY}\n\nend\N{REPLACEMENT CHARACTER}", "you")
        ]
        wrong = [
            ({**one, "ballot": "ballot-0002", "item": 10**6}, 400),
            ({**one, "ballot": "ballot-0003", "short": " "}, 400),
            ({**one, "ballot": "ballot-0004", "short": "x" * 501}, 422),
            ({**one, "ballot": "ballot-0005", "short": "\ud800"}, 422),
            ({**one, "ballot": "x"}, 422),
        ]
        for body, status in wrong:
            content = json.dumps({"captions": [body]}).encode()
            headers = {"X-CSRF-Token": anna.csrf, "Content-Type": "application/json"}
            assert anna.http.post(path, content=content, headers=headers).status_code == status, body
        assert anna.http.post(path, json={"captions": [one]}).status_code == 403  # no token of a page
        assert anna.http.get(f"{path}/{10**6}").status_code == 404
        rater = served.person("Ben", "rater")
        for answer in (
            rater.post(path, {"captions": [one]}),
            rater.post(f"{path}/{one['item']}/old", {}),
            rater.post(f"{path}/{one['item']}/check", {"short": "a", "long": "b"}),
            rater.http.get(f"{path}/{one['item']}"),
        ):
            assert answer.status_code == 403
        assert len(versions_of(served)) == 1
        close(served)
        assert anna.post(path, {"captions": [{**one, "ballot": "ballot-0009", "short": "late"}]}).status_code == 400


# ---- the page


def source(page: Any) -> str:
    return page.locator("#stage img").get_attribute("src")


def write(page: Any, short: str, long: str) -> None:
    """By keys alone: the short field has the focus, Enter leads to the long one."""
    page.keyboard.insert_text(short)
    page.keyboard.press("Enter")
    page.keyboard.insert_text(long)


def wait_for_another(page: Any, before: str) -> None:
    page.wait_for_function("src => document.querySelector('#stage img')?.getAttribute('src') !== src", arg=before)


def caption(page: Any, texts: tuple[str, str]) -> str:
    """Write both captions and save them; return which picture they are of."""
    before = source(page)
    write(page, *texts)
    page.keyboard.press("Enter")
    wait_for_another(page, before)
    return before


TEXTS = [
    ("a soft patch of green light", "A soft patch of green light lies over darker ground. Its edges fade."),
    ("two red fields on blue", "Two red fields stand upon blue, the left one wider. A pale rim parts them."),
    ("violet dusk above a yellow shore", "Violet dusk hangs over a yellow shore while the corner turns black."),
]


@pytest.mark.browser
@pytest.mark.slow
def test_captions_by_keys_alone(tmp_path: Path, page: Any) -> None:
    open_captions(tmp_path / "data", 4)
    with serving(tmp_path / "data") as served:
        enter(page, served, "specialist", "#stage img")
        assert_no_violations(page)
        assert "picture 0" not in page.content() and not page.locator("#draft").is_visible()
        shown = []
        for texts in TEXTS:
            shown.append(caption(page, texts))
            assert page.evaluate("[...document.querySelectorAll('textarea')].map(t => t.value)") == ["", ""]
        page.keyboard.press("PageUp")
        assert source(page) == shown[-1] and page.locator("#short").input_value() == TEXTS[-1][0]
        page.keyboard.press("End")
        page.keyboard.type("line")
        page.keyboard.press("Control+Enter")
        wait_for_another(page, shown[-1])
        last = source(page)
        page.keyboard.press("F9")
        page.get_by_text("Why do you skip it?").wait_for()
        assert_no_violations(page)
        page.keyboard.type("there is nothing on it")
        page.keyboard.press("Enter")
        page.get_by_text("Nothing is left for you now").wait_for()
        assert not page.locator("#panel").is_visible()
        assert_no_violations(page)
        saved(page)
        versions = versions_of(served)
        page.keyboard.press("PageUp")  # what was skipped can still be described
        assert source(page) == last
        page.keyboard.press("F8")
        page.keyboard.down("F8")
        page.locator("#zoom .pixels img").wait_for()
        page.keyboard.up("F8")
        assert page.locator("#zoom").get_attribute("open") is None
    found = [(one.short, one.long) for one in versions]
    assert found == [*TEXTS, ("violet dusk above a yellow shoreline", TEXTS[-1][1])]
    assert versions[3].item_id == versions[2].item_id and all(one.seconds for one in versions)
    assert not any(one.has_looked or one.findings for one in versions[:3])


@pytest.mark.browser
@pytest.mark.slow
def test_the_old_caption_is_hidden_until_asked_for_and_looks_are_kept(tmp_path: Path, page: Any) -> None:
    for file in paint(tmp_path / "pictures", 3).glob("*.txt"):
        file.write_text(f"{NASTY} {file.stem}")
    open_over(tmp_path / "data")
    with serving(tmp_path / "data") as served:
        enter(page, served, "specialist", "#stage img")
        old = page.locator("#old-caption")
        assert not old.is_visible() and "quotes" not in page.content()
        page.keyboard.press("F2")
        expect(old).to_contain_text(NASTY)
        assert page.locator("#old-caption *").count() == 0 and page.title() == "captions"
        assert_no_violations(page)
        page.keyboard.press("F2")
        assert not old.is_visible()
        first = source(page)
        write(page, NASTY, NASTY)  # what is left over of the old one is told, and saved all the same
        page.keyboard.press("Enter")
        page.get_by_text("save it all the same").wait_for()
        assert "old caption" in page.locator("#short-findings").inner_text()
        assert page.locator("#panel script, #panel img").count() == 0
        assert_no_violations(page)
        page.keyboard.press("Enter")
        wait_for_another(page, first)
        assert not old.is_visible() and old.inner_text() == ""
        page.reload()
        page.locator("#stage img").wait_for()
        caption(page, TEXTS[0])
        saved(page)
        page.keyboard.press("PageUp")
        page.locator("summary").press("Enter")
        expect(page.locator("#history li")).to_contain_text("you: a soft patch")  # one: the other is of another picture
        assert_no_violations(page)
        saved(page)
        versions = versions_of(served)
    assert [(one.short, one.has_looked) for one in versions] == [(NASTY, True), (TEXTS[0][0], False)]
    told = {(one["field"], one["code"]): one["is_known"] for one in versions[0].findings}
    assert told[("short", "leftover")] and told[("long", "leftover")] and all(told.values())


@pytest.mark.browser
@pytest.mark.slow
def test_checks_are_shown_beside_the_field_and_stop_nobody(tmp_path: Path, page: Any) -> None:
    open_captions(tmp_path / "data", 4)
    with serving(tmp_path / "data") as served:
        enter(page, served, "specialist", "#stage img")
        first = source(page)
        page.keyboard.insert_text("image of")
        expect(page.locator("#short-findings li")).to_have_count(2)  # without being asked: length, boilerplate
        assert page.locator("#long-findings li").count() == 0  # nothing is written there yet
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(TEXTS[0][0])
        expect(page.locator("#short-findings li")).to_have_count(0)
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")  # nothing is saved while one is empty
        page.get_by_text("Both captions are needed").wait_for()
        assert source(page) == first
        page.keyboard.insert_text("One. Two. Three. Four.")
        page.keyboard.press("Enter")
        page.get_by_text("1 remark").wait_for()
        assert source(page) == first and page.locator("#save.anyway").count() == 1
        assert_no_violations(page)
        page.keyboard.type(" Five.")  # a change asks again
        assert page.locator("#save.anyway").count() == 0
        page.keyboard.press("Enter")
        page.get_by_text("1 remark").wait_for()
        page.keyboard.press("Enter")
        wait_for_another(page, first)
        second = source(page)
        write(page, TEXTS[0][0], TEXTS[0][1])  # the short one again
        expect(page.locator("#short-findings")).to_contain_text("another picture")
        page.keyboard.press("Enter")
        page.get_by_text("1 remark").wait_for()
        page.route("**/check", lambda route: route.abort())  # the checks cannot be asked: that stops nobody
        page.keyboard.press("Control+a")
        page.keyboard.insert_text("Pale violet lies there.")
        page.keyboard.press("Enter")
        wait_for_another(page, second)
        saved(page)
        versions = versions_of(served)
    told = [[(one["field"], one["code"], one["is_known"]) for one in version.findings] for version in versions]
    assert told == [[("long", "length", True)], [("short", "duplicate", False)]]


@pytest.mark.browser
@pytest.mark.slow
def test_a_draft_is_marked_and_an_unedited_one_flagged(tmp_path: Path, page: Any) -> None:
    open_captions(tmp_path / "data", 2, drafts=("0000.png", "0001.png"))
    with serving(tmp_path / "data") as served:
        enter(page, served, "specialist", "#stage img")
        first = source(page)
        assert page.locator("#short").input_value() == "" and "soft patches" not in page.content()
        page.keyboard.press("F4")
        expect(page.locator("#short")).to_have_value("soft patches of light")
        assert page.locator(".drafted").count() == 2 and "captioner" not in page.content()
        assert_no_violations(page)
        page.locator("#long").press("Control+a")
        page.keyboard.insert_text("Soft patches of pale light.")
        assert page.locator(".drafted").count() == 1
        page.keyboard.press("F4")  # it does not replace what was written
        page.get_by_text("Empty a field first").wait_for()
        page.reload()  # that it is a draft's text outlives a reload
        page.locator("#stage img").wait_for()
        assert page.locator(".drafted").count() == 1 and source(page) == first
        page.locator("#long").press("Enter")
        expect(page.locator("#short-findings")).to_contain_text("draft as it was")
        page.locator("#long").press("Enter")
        wait_for_another(page, first)
        write(page, *TEXTS[0])
        page.keyboard.press("Enter")
        page.get_by_text("Nothing is left for you now").wait_for()
        saved(page)
        versions = versions_of(served)
    assert [(one.unedited, one.distance) for one in versions] == [(["short"], 5), ([], None)]


@pytest.mark.browser
@pytest.mark.slow
def test_unfinished_and_unsent_text_outlives_everything(tmp_path: Path, page: Any) -> None:
    """A reload, the back button, a killed server, a lease that ended."""
    open_captions(tmp_path / "data", 5)
    with serving(tmp_path / "data") as served:
        enter(page, served, "specialist", "#stage img")
        first = source(page)
        page.keyboard.insert_text("half a")
        page.get_by_text("1 not saved").wait_for()
        page.reload()
        page.locator("#stage img").wait_for()
        assert source(page) == first and page.locator("#short").input_value() == "half a"
        page.go_back()
        page.go_forward()
        page.locator("#stage img").wait_for()
        assert source(page) == first and page.locator("#short").input_value() == "half a"
        page.locator("#short").press("Control+a")
        caption(page, TEXTS[0])
        saved(page)
        served.process.kill()
        served.process.wait()
        caption(page, TEXTS[1])
        third = source(page)
        page.keyboard.insert_text("violet")
        page.get_by_text("2 not saved").wait_for()
        assert_no_violations(page)
    port = int(served.address.rsplit(":", 1)[1])
    with serving(tmp_path / "data", port=port) as served:
        expect(page.locator("#saved")).to_have_text("1 not saved", timeout=PATIENCE)
        # Somebody else is given the picture meanwhile, and captions it: what was begun is still gone on with.
        database = open_database(tmp_path / "data" / "studio" / "studio.db")
        queue = Queue(database, find_round(database, "captions"))
        ben, _ = invite(database, "Ben", "specialist")
        item = int(third.split("/")[2])
        save(database, queue, ben, [written(queue, queue.place_of(item), 1, short="by somebody else")])
        database.close()
    with serving(tmp_path / "data", port=port) as served:
        page.reload()
        page.locator("#stage img").wait_for()
        assert source(page) == third and page.locator("#short").input_value() == "violet"
        page.locator("#short").press("Control+a")
        write(page, *TEXTS[2])
        page.keyboard.press("Control+Enter")
        page.get_by_text("save it all the same").or_(page.locator(f"#stage img:not([src='{third}'])")).first.wait_for()
        if source(page) == third:
            page.keyboard.press("Control+Enter")
        wait_for_another(page, third)
        saved(page)
        page.wait_for_timeout(500)
        versions = versions_of(served)
    assert [one.short for one in versions] == [TEXTS[0][0], TEXTS[1][0], "by somebody else", TEXTS[2][0]]
    assert len({one.item_id for one in versions}) == 3


@pytest.mark.browser
@pytest.mark.slow
def test_two_tabs_save_once_and_a_refused_text_comes_back(tmp_path: Path, browser: Any) -> None:
    open_captions(tmp_path / "data", 3)
    context = browser.new_context()
    with serving(tmp_path / "data") as served:
        first = context.new_page()
        enter(first, served, "specialist", "#stage img")
        second = context.new_page()
        second.goto(first.url)
        second.locator("#stage img").wait_for()
        for tab in (first, second):
            tab.bring_to_front()
            shown = source(tab)
            tab.locator("#short").press("Control+a")
            tab.keyboard.insert_text(TEXTS[0][0])
            tab.locator("#long").press("Control+a")
            tab.keyboard.insert_text(TEXTS[0][1])
            tab.keyboard.press("Control+Enter")
            wait_for_another(tab, shown)
            saved(tab)
        assert len(versions_of(served)) == 1
        close(served)
        write(second, *TEXTS[1])
        second.keyboard.press("Control+Enter")
        expect(second.locator("#problem")).to_contain_text("closed", timeout=PATIENCE)
        expect(second.locator("#saved")).to_have_text("1 not saved")
        assert len(versions_of(served)) == 1
        stored = second.evaluate("Object.values(localStorage).filter(one => one.includes('two red fields')).length")
    context.close()
    assert stored == 1
