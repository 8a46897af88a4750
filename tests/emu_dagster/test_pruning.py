"""What `emu prune` removes, and what it never removes."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from emu_dagster.cli import app
from emu_dagster.commands import pruning
from emu_dagster.commands.pruning import find
from emu_dagster.machine.processes import one_at_a_time
from emu_dagster.resources.dvc import DvcRepo
from emu_data.files import restore_dir
from emu_models.latent import trainings
from emu_models.training.identity import read_result
from emu_steps.layout import Layout
from emu_steps.training_jobs import publish, published, training_folder
from tests.shards import write_toy_shards
from tests.toy_training import LOOP, autoencoder_job, denoiser_job

ASSET = "pretrained_low"
A, B, C, D = (letter * 16 for letter in "abcd")
USED, UNUSED = "1" * 32, "2" * 32
TICK = 0.02  # seconds; a file system's times are as coarse as the kernel's clock


@pytest.fixture
def root(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which nothing counts as in use."""
    monkeypatch.setattr(pruning, "QUIET_SECONDS", -1.0)
    (project / ".dvc").mkdir()
    (project / "params.yaml").write_text("profile: toy\n")
    return project


def read_files(root: Path) -> dict[str, bytes | None]:
    """Return path -> bytes, None for a folder, of everything below `root`."""
    return {p.relative_to(root).as_posix(): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


def write(path: Path, text: str = "something") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def begin(root: Path, identity: str, asset: str = ASSET) -> Path:
    """Make a training that has saved a state."""
    folder = training_folder(Layout(root), asset, identity)
    write(folder / "identity.json", json.dumps({"settings": {"spec": {"num_text_tokens": 8}}, "contents": {}}))
    write(folder / "caches.json", json.dumps([USED]))
    write(folder / "metrics.jsonl", "")
    write(folder / "states" / "unet.optimizer.safetensors", identity * 3)
    return folder


def finish(root: Path, identity: str, asset: str = ASSET, place: str = "") -> dict[str, Any]:
    """Make a finished training, as the child reports it."""
    folder = begin(root, identity, asset)
    write(folder / "result" / "meta.json", json.dumps({"identity": identity, "result": {}}))
    write(folder / "result" / "unet" / "weights", identity)
    time.sleep(TICK)
    return {"name": place or asset, "folder": str(folder), "out": str(Layout(root).model(asset) / place)}


def ask(root: Path, *results: dict[str, Any], asset: str = ASSET) -> None:
    """Publish trainings that were requested: each start writes identity.json
    (test_real_trainings_are_pruned_and_found_again)."""
    for result in results:
        (Path(result["folder"]) / "identity.json").touch()
    publish(Layout(root), asset, results)
    time.sleep(TICK)


def going(root: Path, unfinished: bool = False) -> set[str]:
    """Return what would be removed, below data/states/ASSET or else below data/."""
    found = {one.path.relative_to(root / "data").as_posix() for one in find(Layout(root), unfinished) if not one.stays}
    return {path.removeprefix(f"states/{ASSET}/") for path in found}


def emu(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["prune", *arguments])
    assert done.exit_code == 0, done.output
    return done.output.strip().splitlines()[-1]


def test_a_training_goes_once_a_later_one_is_published_in_its_place(root: Path) -> None:
    layout = Layout(root)
    first = finish(root, A)
    assert going(root) == set()
    ask(root, first)
    assert going(root) == {f"{A}/states"}
    second = finish(root, B)  # not published yet: its asset may wait for others
    assert going(root) == {f"{A}/states"}
    ask(root, second)
    assert going(root) == {A, f"{B}/states"}
    ask(root, first)
    assert going(root) == {B, f"{A}/states"}
    shutil.rmtree(layout.model(ASSET))
    assert going(root) == set()


def test_trainings_that_a_model_made_elsewhere_replaced_stay(root: Path) -> None:
    ask(root, finish(root, A))
    ask(root, finish(root, B))
    shutil.rmtree(training_folder(Layout(root), ASSET, B))
    assert going(root) == set()


def test_all_parts_of_a_study_count_as_published(root: Path) -> None:
    study = "autoencoder_study"
    results = [finish(root, name, study, place) for name, place in ((A, "c4"), (B, "c8"), (C, "c16"))]
    ask(root, *results, asset=study)
    ask(root, *results[:2], asset=study)
    assert going(root) == {f"states/{study}/{A}/states", f"states/{study}/{B}/states", f"states/{study}/{C}"}


def test_unfinished_trainings_go_only_if_requested(root: Path) -> None:
    begin(root, A)
    time.sleep(TICK)
    begin(root, B)
    assert going(root) == set()
    assert going(root, unfinished=True) == {A}  # B is the newest, and there is no model
    ask(root, finish(root, C))
    assert going(root, unfinished=True) == {A, B, f"{C}/states"}


def test_what_is_being_written_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(root, finish(root, C))
    begin(root, A)
    write(root / "data/models/.toy.tmp-0123abcd/weights")
    cache = write(root / f"data/cache/encoded/moments/{UNUSED}/x.safetensors").parent
    found = {A, f"{C}/states", "models/.toy.tmp-0123abcd", f"cache/encoded/moments/{UNUSED}"}
    assert going(root, unfinished=True) == found
    monkeypatch.setattr(pruning, "QUIET_SECONDS", 3600.0)
    old = time.time() - 10 * 3600
    os.utime(cache / "x.safetensors", (old, old))  # as in a copy that keeps times
    os.utime(cache, (old, old))
    assert going(root, unfinished=True) == {f"{C}/states"}


LEFT = [
    "data/.raw.tmp-0123abcd/00000.tar",
    f"data/models/.{ASSET}.tmp-0123abcd/unet/weights",
    f"data/models/.{ASSET}.tmp-0123abce-old/unet/weights",
    "data/reports/.index.html.tmp-0123abcd",
    f"data/states/{ASSET}/{A}/.state.tmp-0123abcd/meta.json",
    f"data/states/{ASSET}/{A}/.metrics.jsonl.tmp-0123abcd",
    f"data/states/{ASSET}/.{B}.tmp-0123abcd/identity.json",
    "data/signals/phash@1/.00000.parquet.tmp-0123abcd",
    "data/ledger/.00000.parquet.tmp-0123abcd",
    f"data/cache/encoded/moments/{USED}/.y.safetensors.tmp-0123abcd",
    f"data/cache/encoded/moments/{UNUSED}/x.safetensors",
]
KEPT = [
    "data/raw/00000.tar",
    "data/raw/.mine.tmp-0123abcd",
    "data/votes/appeal/votes.jsonl",
    "data/votes/appeal/.votes.jsonl.tmp-0123abcd",
    "data/signals/phash@1/00000.parquet",
    "data/signals/phash@0/00000.parquet",
    "data/ledger/00000.parquet",
    "data/models/my_own/weights",
    "data/models/.my_own.tmp-notours",
    "data/models/.lost.tmp-0123abcd-old/weights",  # restore_dir puts it back
    "data/reports/.index.html.swp",
    f"data/states/{ASSET}/notes.txt",
    f"data/states/{ASSET}/replaced-1/weights",
    f"data/states/{ASSET}/{C}-copy/states/x",
    f"data/states/{ASSET}/{D}/result/meta.json",  # no identity.json: it is unknown whose it is
    f"data/states/not_an_asset/{A}/identity.json",
    f"data/states/not_an_asset/{A}/states/x",
    "data/evaluation_images/0.png",
    "data/unknown/.thing.tmp-0123abcd",
    f"data/cache/encoded/moments/{USED}/x.safetensors",
    f"data/cache/encoded/moments/{'3' * 32}/of_mine.txt",
    "data/cache/encoded/readme/x.safetensors",
    "data/cache/packages/fonts.tgz",
    ".dvc/cache/files/md5/00/11",
]


def test_what_it_does_not_know_stays_to_the_byte(root: Path) -> None:
    write(Path(finish(root, C)["folder"]) / "why_this_was_good.md")
    linked = Path(finish(root, "f" * 16)["folder"]) / "result"
    shutil.rmtree(linked)
    linked.symlink_to(root / "a_disk_that_is_not_there")
    for identity in (B, A):
        ask(root, finish(root, identity))
    elsewhere = write(root / "elsewhere" / "states" / "x").parents[1]
    write(elsewhere / "identity.json", '{"settings": {"spec": {}}}')
    (training_folder(Layout(root), ASSET) / ("e" * 16)).symlink_to(elsewhere)
    for path in (*LEFT, *KEPT):
        write(root / path, '{"settings": {"spec": {}}}' if path.endswith("identity.json") else "something")
    before = read_files(root)
    assert linked.parent.name not in going(root, unfinished=True)

    assert emu() == "nothing was removed; emu prune --yes removes this"
    assert read_files(root) == before

    assert emu("--yes").endswith("freed")
    tops = {f"data/states/{ASSET}/{A}/states", f"data/states/{ASSET}/{B}", *(top_of(path) for path in LEFT)}
    expected = {p: b for p, b in before.items() if not any(p == top or p.startswith(f"{top}/") for top in tops)}
    left = {p: b for p, b in read_files(root).items() if not p.startswith(".dvc/tmp")}
    assert left == expected
    assert set(KEPT) <= set(left)

    assert emu("--yes") == "there is nothing to remove"
    assert {p: b for p, b in read_files(root).items() if not p.startswith(".dvc/tmp")} == expected
    restore_dir(root / "data/models/lost")
    assert (root / "data/models/lost/weights").is_file()


def top_of(path: str) -> str:
    """Return the leftover, or the cache, that a file of LEFT is in."""
    parts = path.split("/")
    for i, part in enumerate(parts):
        if ".tmp-" in part or part == UNUSED:
            return "/".join(parts[: i + 1])
    return path


HELD = [
    *("", "models", "votes/appeal", "raw", "signals", "signals/phash@1", "ledger", "reports", "reports/demo", "cache"),
    *(f"states/{ASSET}/{name}" for name in ("", A, B, C, "replaced-1")),
    *("states", "states/mine", f"states/mine/{B}", "curated", "mine"),
    *("cache/encoded", "cache/encoded/moments", f"cache/encoded/moments/{USED}"),
]
NAMES = st.text("ab0.-_@", min_size=1, max_size=20).filter(lambda name: set(name) != {"."})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(HELD), NAMES, st.booleans()), max_size=12))
def test_names_that_are_not_ours_are_never_found(root: Path, held: list[tuple[str, str, bool]]) -> None:
    """Files and folders of people, anywhere: nothing that is found is one of them, or holds one of them."""
    shutil.rmtree(root / "data", ignore_errors=True)
    finish(root, B)
    ask(root, finish(root, A))
    begin(root, C)
    theirs = []
    for folder, name, is_folder in held:
        path = root / "data" / folder / name
        if not path.exists() and all(not parent.is_file() for parent in path.parents):
            write(path / "x" if is_folder else path)
            theirs.append(path)
    for one in find(Layout(root), unfinished=True):
        assert one.stays or not any(path == one.path or one.path in path.parents for path in theirs)


def test_a_result_that_a_kill_left_half_renamed_stays(root: Path) -> None:
    ask(root, finish(root, B))
    folder = Path(finish(root, A)["folder"])
    (folder / "result").rename(folder / ".result.tmp-0123abcd-old")
    assert going(root, unfinished=True) == {f"{B}/states"}


@pytest.mark.parametrize("reported", ["[]", "not JSON", None])
def test_caches_stay_if_a_training_does_not_say_what_it_reads(root: Path, reported: str | None) -> None:
    write(root / f"data/cache/encoded/moments/{UNUSED}/x.safetensors")
    assert going(root) == set()  # no training at all
    begin(root, B)
    assert going(root) == {f"cache/encoded/moments/{UNUSED}"}
    named = begin(root, A) / "caches.json"
    named.unlink()
    if reported is not None:
        named.write_text(reported)
    assert going(root) == ({f"cache/encoded/moments/{UNUSED}"} if reported == "[]" else set())


def test_it_waits_for_a_command_that_is_at_work(root: Path) -> None:
    ask(root, finish(root, A))
    for lock in (DvcRepo().lock.own / "commands.lock", DvcRepo().lock.own / f"{ASSET}.lock"):
        with one_at_a_time(lock, "training"):
            command = [sys.executable, "-m", "emu_dagster.cli", "prune", "--yes"]
            with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
                assert other.stderr is not None
                assert "which has been training since" in other.stderr.readline()
                assert going(root) == {f"{A}/states"}
                other.kill()


def test_killed_during_a_removal_it_leaves_no_half_of_a_training(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for identity in (A, B):
        ask(root, finish(root, identity))

    def die(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pruning.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            pruning.prune(root, yes=True, unfinished=False)
    assert not training_folder(Layout(root), ASSET, A).exists()
    assert emu("--yes").endswith("freed")
    assert not [path for path in read_files(root) if A in path]


def test_a_linked_file_frees_nothing(root: Path) -> None:
    first = Path(finish(root, A)["folder"])
    (first / "states" / "unet.optimizer.safetensors").unlink()
    os.link(first / "result" / "unet" / "weights", first / "states" / "weights")
    publish(Layout(root), ASSET, [{"out": str(Layout(root).model(ASSET)), "folder": str(first)}])
    assert [one.size for one in find(Layout(root))] == [0]


def test_a_folder_that_is_not_a_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"params\.yaml is missing"):
        pruning.prune(tmp_path, yes=True, unfinished=False)


def test_real_trainings_are_pruned_and_found_again(root: Path) -> None:
    layout = Layout(root)
    corpus = write_toy_shards(root, num_images=24)

    def train(asset: str, make: Any, *given: Any, steps: int, **changes: Any) -> trainings.TrainingResult:
        job, running = make(corpus, layout.cache, *given, loop=replace(LOOP, num_steps=steps), **changes)
        places = {"states": training_folder(layout, asset), "out": layout.model(asset)}
        job = replace(job, **places, cache=layout.cache / "encoded")
        run = trainings.train_autoencoder if asset == "autoencoder" else trainings.train_denoiser
        result = run(job, running)
        publish(layout, asset, [{**asdict(result), "out": str(job.out)}])
        time.sleep(TICK)
        return result

    def autoencoder(steps: int) -> trainings.TrainingResult:
        return train("autoencoder", autoencoder_job, steps=steps)

    def denoiser() -> trainings.TrainingResult:
        return train(ASSET, denoiser_job, layout.model("autoencoder"), steps=1, prompts=())

    with_b = [autoencoder(2).folder, denoiser().folder]
    with_a = [autoencoder(1).folder, denoiser().folder]
    for steps in (2, 1):
        autoencoder(steps)
        denoiser()
    models = read_files(root / "data" / "models")
    moments = layout.cache / "encoded" / "moments"
    assert len(list(moments.iterdir())) == 2
    assert emu("--yes").endswith("freed")
    assert read_files(root / "data" / "models") == models
    assert not any(folder.exists() for folder in with_b)
    assert len(list(moments.iterdir())) == 1
    for folder, asset in zip(with_a, ("autoencoder", ASSET), strict=True):
        assert published(layout.model(asset)) == [folder.name]
        assert not (folder / "states").exists() and read_result(folder) is not None
    shutil.rmtree(root / "data" / "models")
    assert not autoencoder(1).timings and not denoiser().timings  # found, not trained
    assert read_files(root / "data" / "models") == models
    assert emu("--yes") == "there is nothing to remove"
