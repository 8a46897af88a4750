"""`emu studio` on the command line: rounds on the graph's pictures and on folders, and what was decided counts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from emu_dagster.cli import run
from emu_dagster.commands.studio import open_project_database
from emu_data.shards import read_manifest
from emu_data.votes.plans import read_plans
from emu_data.votes.rounds import open_log
from emu_steps.captioning import recorded_captions
from emu_steps.choosing import read_captioned_by, select_generalists_choice, write_curated_set
from emu_steps.judging import appeal_ballots, faithfulness_ballots
from emu_steps.layout import Layout
from emu_steps.needs import find_shortage
from emu_steps.params import Params, read_params
from emu_steps.voting import generalist_ballots, recorded_round, specialist_ballots
from emu_steps.waiting import shown_items
from emu_studio.ballots import Ballot
from emu_studio.captions import GivenCaptions, save
from emu_studio.clerk import Clerk
from emu_studio.database import CastVote
from emu_studio.people import Person, list_people
from emu_studio.queue import Queue
from emu_studio.rounds import find_round, list_rounds
from tests.e2e.pages import free_port
from tests.emu_data.drawings import draw_balls
from tests.profiles import text_of
from tests.rounds import COMPARISON, write_filtered, write_pairs

TOP = Path(__file__).parents[2]
SECONDS = 90  # for a server to start on a busy machine


@pytest.fixture
def layout(project: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A project with a few pictures and pairs, in which only people decide."""
    text = text_of("smoke").replace("voters: people, then panel", "voters: people")
    text = text.replace("comparison: [tuned, pretrained]", f"comparison: [{', '.join(COMPARISON)}]")
    first, second = COMPARISON
    named = f"contestants: {{{first}: data/models/quality_tuned, {second}: data/models/pretrained_full}}"
    text = text.replace("evaluation_images:\n", f"evaluation_images:\n  {named}\n")
    (project / "params.yaml").write_text(text)
    monkeypatch.chdir(project)
    monkeypatch.delenv("EMU_STUDIO_DATABASE", raising=False)
    layout = Layout(project)
    write_filtered(layout, np.concatenate([draw_balls(False)[:4], draw_balls(True)[:4]]))
    write_pairs(layout, draw_balls(True)[:4])
    return layout


@pytest.fixture
def params(layout: Layout) -> Params:
    return read_params(layout.root / "params.yaml")


def emu(*arguments: str) -> None:
    assert run(["studio", *arguments]) in (0, None)


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line by which a command refuses."""
    capfd.readouterr()
    assert run(["studio", *arguments]) in (1, 2)
    told = capfd.readouterr().err
    assert told.startswith("emu: ") and told.count("\n") == 1 and "nobody foresaw" not in told, told
    return told


def come(layout: Layout, role: str, name: str = "Anna") -> Person:
    emu("invite", f"{name} {role}", "--role", role)
    database = open_project_database(layout, None)
    found = list_people(database)[-1]
    database.close()
    return found


def vote_on_all(layout: Layout, name: str, person: Person, decide: Any) -> None:
    """Cast a vote on each item that the queue hands out. decide: number of the item -> decision."""
    database = open_project_database(layout, None)
    queue = Queue(database, find_round(database, name))
    clerk, number = Clerk(database, queue), 0
    while turns := queue.take(person, 3):
        for turn in turns:
            ballot = Ballot(ballot=f"ballot-{number}", item=turn.item_id, decision=decide(number), seconds=1.0)
            clerk.cast(person, [ballot.model_copy(update={"is_repeat": turn.is_repeat})])
            number += 1
    database.close()


def open_with(layout: Layout, name: str, **plan: Any) -> None:
    """Open a round of one rater per item."""
    file = layout.root / f"{name}.yaml"
    file.write_text(json.dumps({"question": name, "raters_per_item": 1, **plan}))
    emu("open", name, "--plan", str(file))


def test_a_vote_that_is_cast_in_the_studio_counts_in_each_round_of_the_graph(layout: Layout, params: Params, capfd):
    """From the filtered corpus to the votes on pairs, each round opened and closed by its command."""
    everybody = {role: come(layout, role) for role in ("generalist", "specialist", "rater")}

    def waits(name: str) -> bool:
        return find_shortage(layout, params, f"{name}_votes", "http://here") is not None

    assert waits("generalist")
    emu("open", "generalist")
    vote_on_all(layout, "generalist", everybody["generalist"], lambda n: ("keep", "keep", "drop")[n % 3])
    emu("close", "generalist")
    assert not waits("generalist")
    with recorded_round(layout, "generalist", generalist_ballots(layout, params.generalist_votes, 8)) as found:
        assert found.metrics["num_votes_of_people"] == found.metrics["num_shown"] == 8 and not found.not_shown
    chosen = select_generalists_choice(layout, 8, params.generalist_votes.voters).chosen
    assert len(chosen) == 6 and chosen["by_people"].all()

    assert waits("specialist")
    open_with(layout, "specialist")
    vote_on_all(layout, "specialist", everybody["specialist"], lambda n: ("keep", "drop")[n % 2])
    emu("close", "specialist")
    with recorded_round(layout, "specialist", specialist_ballots(layout, params.specialist_votes, 8)) as found:
        assert found.metrics["num_votes_of_people"] == found.metrics["num_shown"] == 6
    write_curated_set(layout, 8, params.specialist_votes.voters)
    assert len(read_manifest(layout.curated)) == 3

    for name, decision in (("appeal", "left"), ("faithfulness", "both")):
        assert waits(name)
        open_with(layout, name)
        vote_on_all(layout, name, everybody["rater"], lambda n, decision=decision: decision)
        emu("close", name)
        ballots = (
            appeal_ballots(layout, params.appeal_votes, COMPARISON)
            if name == "appeal"
            else faithfulness_ballots(layout, params.faithfulness_votes, COMPARISON)
        )
        with recorded_round(layout, name, ballots) as found:
            assert found.metrics["num_votes_of_people"] == found.metrics["num_shown"] == 4, name
        assert not waits(name)
    capfd.readouterr()
    assert run(["votes", "verify"]) == 0
    told = capfd.readouterr().out
    assert told.count("sound") == 4 and "studio, generalist: sound" in told


def test_captions_go_from_the_page_into_the_curated_set(layout: Layout, params: Params):
    everybody = {role: come(layout, role) for role in ("generalist", "specialist")}
    for name in ("generalist", "specialist"):
        open_with(layout, name)
        vote_on_all(layout, name, everybody[name], lambda n: "keep")
        emu("close", name)
        make = generalist_ballots if name == "generalist" else specialist_ballots
        with recorded_round(layout, name, make(layout, getattr(params, f"{name}_votes"), 8)):
            pass
        if name == "generalist":
            select_generalists_choice(layout, 4, params.generalist_votes.voters)
    write_curated_set(layout, 4, params.specialist_votes.voters)
    drafts = layout.root / "drafts.jsonl"
    key = read_manifest(layout.curated)["key"].iloc[0]
    drafts.write_text(json.dumps({"key": key, "short": "a ball", "long": "A ball.", "model": "tiny"}))
    emu("open", "captions", "--drafts", str(drafts))
    database = open_project_database(layout, None)
    queue = Queue(database, find_round(database, "captions"))
    for number, turn in enumerate(queue.take(everybody["specialist"], 2)):
        given = GivenCaptions(
            ballot=f"ballot-{number}",
            item=turn.item_id,
            short=f"a drawn ball number {number}",
            long="A ball that somebody drew.",
        )
        save(database, queue, everybody["specialist"], [given])
    database.close()
    emu("close", "captions")
    with recorded_captions(layout) as found:
        assert found.metrics["num_pictures"] == 2
    write_curated_set(layout, 4, params.specialist_votes.voters)
    assert read_manifest(layout.curated)["short"].notna().sum() == 2
    assert read_captioned_by(layout).startswith("1 person: 2 of 4 captions")


def test_what_the_studio_shows_is_what_the_assets_count(layout: Layout, params: Params):
    for name in ("generalist", "appeal", "faithfulness"):
        emu("open", name)
        emu("close", name)
        (plan,) = read_plans(layout.votes(name))
        from emu_data.votes.plans import digest_items

        assert plan.items == digest_items(shown_items(layout, params, name)), name


def test_other_pictures_get_a_round_of_their_own_whose_votes_join(layout: Layout, params: Params, capfd):
    emu("open", "appeal")
    assert "is open already; `emu studio close appeal`" in refused(capfd, "open", "appeal")
    rater = come(layout, "rater")
    emu("close", "appeal")
    write_pairs(layout, draw_balls(True)[4:8])  # another model's
    open_with(layout, "appeal")
    database = open_project_database(layout, None)
    assert {one.name: one.plan.recorded_as for one in list_rounds(database)} == {
        "appeal": "appeal",
        "appeal-2": "appeal",
    }
    database.close()
    vote_on_all(layout, "appeal-2", rater, lambda n: "tie")
    emu("close", "appeal-2")
    assert len(read_plans(layout.votes("appeal"))) == 2
    with recorded_round(layout, "appeal", appeal_ballots(layout, params.appeal_votes, COMPARISON)) as found:
        assert found.metrics["num_votes_of_people"] == 4
    emu("reopen", "appeal-2", "--why", "one more came")
    assert "appeal-2 is open already" in refused(capfd, "open", "appeal")


def test_a_folder_of_pictures_needs_neither_params_nor_data(project: Path, capfd: pytest.CaptureFixture[str]):
    for folder in ("a", "b"):
        (project / folder).mkdir()
        for number in range(4):
            image = Image.new("RGB", (40, 30), (60 * number, 90 if folder == "a" else 200, 9))
            image.save(project / folder / f"a-red-ball-{number}.{'png' if folder == 'a' else 'webp'}")
    pairs = ("--pictures", str(project / "a"), "--pictures", str(project / "b"))
    emu("open", "generalist", "--pictures", str(project / "a"))
    emu("open", "faithfulness", *pairs)
    assert "two folders" in refused(capfd, "open", "appeal", "--pictures", str(project / "a"))
    assert "one folder" in refused(capfd, "open", "specialist", *pairs)
    rater = come(Layout(project), "rater")
    vote_on_all(Layout(project), "faithfulness", rater, lambda n: "neither")
    emu("close", "faithfulness")
    keys = {vote.key for vote in open_log(project / "data/votes/faithfulness").read()}
    assert keys == {f"a-red-ball-{number}" for number in range(4)}
    (project / "b" / "a-red-ball-3.webp").unlink()
    assert "a-red-ball-3" in refused(capfd, "open", "appeal", *pairs)
    (project / "plan.yaml").write_text("question: generalist\nsheet_size: 6\n")
    emu("open", "spring", "--plan", str(project / "plan.yaml"), "--pictures", str(project / "a"))
    assert not (project / "params.yaml").exists()


def test_people_are_invited_listed_renewed_revoked_and_forgotten(layout: Layout, capfd: pytest.CaptureFixture[str]):
    emu("invite", "Anna Unmistakable", "--role", "lead")
    link = capfd.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"http://127\.0\.0\.1:8001/enter/[\w-]{32}", link)
    emu("people")
    pseudonym, _, rest = capfd.readouterr().out.partition(": ")
    assert pseudonym.startswith("lead-") and rest.startswith("Anna Unmistakable, lead, invited on")
    emu("renew", pseudonym)
    assert capfd.readouterr().out.strip() != link
    emu("revoke", pseudonym)
    emu("erase", pseudonym)
    emu("people")
    told = capfd.readouterr().out
    assert "(name erased)" in told and "revoked on" in told and "Unmistakable" not in told.splitlines()[-1]
    assert b"Unmistakable" not in (layout.data / "studio" / "studio.db").read_bytes()


def test_votes_leave_and_come_back_as_files(layout: Layout, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    open_with(layout, "generalist")
    vote_on_all(layout, "generalist", come(layout, "generalist"), lambda n: "keep")
    for name in ("votes.csv", "votes.parquet", "votes.json"):
        emu("export", "generalist", str(tmp_path / name))
        assert "8 votes in" in capfd.readouterr().out and (tmp_path / name).stat().st_size > 100
    assert "--kind" in refused(capfd, "export", "generalist", str(tmp_path / "votes.txt"))
    assert "only a comparison" in refused(
        capfd, "export", "generalist", str(tmp_path / "pairs.parquet"), "--kind", "preferences"
    )
    emu("close", "generalist")
    csv = str(tmp_path / "votes.csv")
    assert "is closed" in refused(capfd, "import", "generalist", csv, "--source", "another studio")
    emu("reopen", "generalist", "--why", "votes came by post")
    emu("import", "generalist", csv, "--source", "another studio")
    assert "8 votes of 1 people joined generalist; 0 were" in capfd.readouterr().out
    emu("import", "generalist", csv, "--source", "another studio")
    assert "0 votes" in capfd.readouterr().out
    emu("close", "generalist")
    assert {vote.source for vote in open_log(layout.votes("generalist")).read()} == {"", "another studio"}
    (tmp_path / "bad.csv").write_text("rater,key,decision\nben,nowhere,keep\nben,000000000,maybe\n")
    emu("reopen", "generalist", "--why", "again")
    assert "line 2" in (told := refused(capfd, "import", "generalist", str(tmp_path / "bad.csv"), "--source", "x"))
    assert "line 3" in told


def test_an_edit_in_the_database_is_found_by_both_commands(layout: Layout, capfd: pytest.CaptureFixture[str]):
    open_with(layout, "generalist")
    vote_on_all(layout, "generalist", come(layout, "generalist"), lambda n: "keep")
    emu("close", "generalist")
    assert run(["votes", "verify"]) == run(["studio", "verify"]) == 0
    database = open_project_database(layout, None)
    with database.write() as session:
        row = session.get_one(CastVote, (1, 2))
        row.line = row.line.replace('"keep"', '"drop"')
    database.close()
    capfd.readouterr()
    assert run(["votes", "verify"]) == 1 and run(["votes", "verify", "generalist"]) == 1
    assert run(["studio", "verify"]) == 1 and run(["votes", "verify", "appeal"]) == 0
    assert "generalist, vote 3: the vote was edited" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["close", "nix"], "no round 'nix'"),
        (["reopen", "nix", "--why", "x"], "no round 'nix'"),
        (["revoke", "nobody"], "nobody is called nobody"),
        (["renew", "nobody"], "nobody is called nobody"),
        (["erase", "nobody"], "nobody is called nobody"),
        (["invite", "Anna", "--role", "king"], "no role 'king'"),
        (["open", "nix"], "no question 'nix'"),
        (["open", "specialist"], "emu materialize generalist_selection --upstream"),
        (["open", "captions"], "emu materialize curated_set --upstream"),
        (["open", "generalist", "--plan", "nowhere.yaml"], "nowhere.yaml"),
        (["open", "generalist", "--pictures", "nowhere"], "nowhere is no folder"),
        (["open", "generalist", "--drafts", "x"], "--drafts"),
        (["export", "nix", "x.csv"], "no round 'nix'"),
        (["rounds", "--database", "nowhere"], "database cannot be opened"),
        (["--address", "example.org"], "--address example.org"),
        (["--host", "no such host"], "no such host"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line(layout: Layout, arguments, told, capfd: pytest.CaptureFixture[str]):
    assert told in refused(capfd, *arguments)


def test_a_plan_in_the_wrong_folder_and_a_wrong_one_are_refused(layout: Layout, capfd: pytest.CaptureFixture[str]):
    (layout.root / "plan.yaml").write_text("question: appeal\n")
    assert "is for rounds of generalist" in refused(capfd, "open", "generalist", "--plan", "plan.yaml")
    (layout.root / "plan.yaml").write_text("question: generalist\nsheet_size: 100\n")
    assert "sheet_size" in refused(capfd, "open", "generalist", "--plan", "plan.yaml")


# ---- the server


class Running:
    """`emu studio` as a process. said: what it printed until it was up."""

    def __init__(self, root: Path, *options: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "emu_dagster.cli", "studio", "--port", str(self.port), *options]
        environment = os.environ | {"EMU_ROOT": str(root), "PYTHONPATH": str(TOP), "PYTHONUNBUFFERED": "1"}
        self.log = root / f"log-{self.port}"
        self.process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=self.log.open("wb"), stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/static/studio.css", timeout=2)
                break
            except httpx.TransportError:
                time.sleep(0.2)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SECONDS)


@pytest.fixture
def start(layout: Layout) -> Iterator[Any]:
    running: list[Running] = []

    def start(*options: str) -> Running:
        running.append(Running(layout.root, *options))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.wait()


def test_the_studio_is_served_by_one_process_and_says_what_to_do(layout: Layout, start: Any, capfd):
    studio = start()
    assert f"Studio   http://127.0.0.1:{studio.port}" in studio.said and "emu studio open ROUND" in studio.said
    assert "emu studio invite NAME --role lead" in studio.said
    emu("invite", "Anna", "--role", "generalist")
    link = capfd.readouterr().out.splitlines()[-1]
    assert link.startswith(f"http://127.0.0.1:{studio.port}/enter/")  # wherever it is served
    emu("open", "generalist", "--no-probe")  # while it is being served
    with httpx.Client(follow_redirects=True) as browser:
        assert "generalist" in browser.get(link).text
        emu("close", "generalist")
        assert "closed" in browser.get(f"http://127.0.0.1:{studio.port}/rounds/generalist").text
    told = refused(capfd, "--port", str(free_port()))
    assert f"is running, at http://127.0.0.1:{studio.port}" in told
    assert studio.stop() == 0 and "Traceback" not in studio.said
    taken = start("--address", "https://studio.example.org/")
    assert "Studio   https://studio.example.org\n" in taken.said
    assert taken.stop() == 0


def test_a_taken_port_and_a_host_that_others_reach_are_said(layout: Layout, start: Any, capfd):
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert f"port {port} is taken; choose another with --port" in refused(capfd, "--port", str(port))
    studio = start("--host", "0.0.0.0")
    assert "put https before it" in studio.said


def test_the_demo_lets_a_newcomer_vote_at_once(layout: Layout, start: Any):
    """On the pictures that the project has; links are new at each start."""
    studio = start("--demo")
    assert "Rounds on the pictures of this project: generalist, appeal, faithfulness." in studio.said
    links = re.findall(r"(\w+), (\w+): (http\S+/enter/\S+)", studio.said)
    assert [role for _, role, _ in links] == ["generalist", "specialist", "rater", "lead"]
    with httpx.Client(follow_redirects=True) as browser:
        page = browser.get(links[0][2])
        assert "generalist" in page.text and "Gina" in page.text
    assert studio.stop() == 0
    again = start("--demo")
    assert links[0][2].rsplit("/", 1)[1] not in again.said
    database = open_project_database(layout, None)
    assert len(list_people(database)) == 4 and len(list_rounds(database)) == 3
    database.close()


def test_the_demo_without_pictures_says_that_its_own_do_not_count(layout: Layout, start: Any):
    shutil.rmtree(layout.data)
    studio = start("--demo")
    assert "24 crops of two photographs" in studio.said and "will not count" in studio.said
    database = open_project_database(layout, None)
    assert {one.name for one in list_rounds(database)} == {
        f"practice-{question}" for question in ("generalist", "specialist", "captions", "appeal", "faithfulness")
    }
    assert len(Queue(database, find_round(database, "practice-generalist"))) == 24
    database.close()
