"""Every option of every command refuses what cannot be meant: one last line that says what, no traceback, no exit 0."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from s3fs import S3FileSystem

from emu_dagster.cli import app, describe_error, run
from tests.profiles import text_of
from tests.shards import write_toy_shards

TOP = Path(__file__).parents[2]
HUGE = "9" * 40
NUMBERS = ("-1", "nan", "inf", "1e30", HUGE, "", "x")
TEXTS = ("", " ", "-1", "no such thing", "/nowhere/at/all", "\x07")
# (command, parameter): values that are right there, and why
RIGHT: dict[tuple[str, str], tuple[set[str], str]] = {
    ("generate", "prompt"): ({*TEXTS} - {"", " "}, "any text is a prompt"),
    ("generate", "out"): ({"-1", "no such thing", "\x07", "/nowhere/at/all", ""}, "a folder that is made"),
}
# What the other parameters of a command need to be, so that the one that is tried decides. TOY is a folder of shards.
OPTIONS = {"generate": ["--model", "nowhere"]}
ARGUMENTS = {"generate": ["a red apple"], "ingest": ["TOY"], "show": ["000000000"], "profile": ["smoke"]}
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE")


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of all commands, those of groups too."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def parameters() -> Iterator[Any]:
    for words, command in commands():
        for parameter in command.params:
            if parameter.name != "help" and not getattr(parameter, "is_flag", False):
                yield pytest.param(words, parameter, id=" ".join([*words, parameter.opts[0]]))


@pytest.fixture
def root(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project in which nothing was made, and no credentials."""
    shutil.copytree(TOP / "profiles", project / "profiles")
    shutil.copytree(TOP / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    (project / "params.yaml").write_text(text_of("smoke"))
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(project / "none"))
    monkeypatch.chdir(project)
    yield project
    S3FileSystem.clear_instance_cache()  # it keeps that there were no credentials


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The last line of a command that must fail."""
    code = run(arguments)
    told = capfd.readouterr()
    assert code not in (0, None), f"{arguments}: {told.out}"
    assert "Traceback" not in told.out + told.err and "nobody foresaw" not in told.err, told.err
    last = told.err.strip().splitlines()[-1].strip()
    assert last and len(last) < 2000
    return last


@pytest.mark.parametrize(("words", "parameter"), list(parameters()))
def test_absurd_values_are_refused_in_one_line(
    words: tuple[str, ...], parameter: Any, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_toy_shards(root, 2)
    (root / "a file").write_text("nothing")
    is_number = isinstance(parameter.default, (int, float))
    right, _ = RIGHT.get((" ".join(words), parameter.name), (set[str](), ""))
    for value in NUMBERS if is_number else (*TEXTS, str(root), str(root / "a file")):
        is_argument = not parameter.opts[0].startswith("-")
        others = [] if is_argument else [str(root / "shards") if g == "TOY" else g for g in ARGUMENTS.get(words[0], [])]
        tried = ["--", value] if is_argument else [f"{parameter.opts[0]}={value}"]
        last = refused([*words, *OPTIONS.get(words[0], []), *others, *tried], capfd)
        if value in right or (not is_number and right and value.startswith(str(root))):
            continue  # refused for what the project lacks, here a model
        names = {parameter.name, parameter.opts[0], value.strip() or "empty", repr(value)}
        assert any(name in last for name in names), f"{words} {tried}: {last}"
    assert (root / "params.yaml").read_text() == text_of("smoke")


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_every_command_refuses_what_it_does_not_know(words, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "--help" in refused([*words, "--no-such-option"], capfd)


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_every_command_explains_itself(words, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--help"]) == 0
    assert capfd.readouterr().out.strip()


NEEDS_PARAMS = (["ingest", "SHARDS"], ["funnel"], ["show", "000000000"], ["aesthetics-head"], ["doctor"])


@pytest.mark.parametrize("arguments", NEEDS_PARAMS, ids=lambda arguments: arguments[0])
def test_params_that_do_not_load_are_named(arguments, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("ema_decay: 0.99", "ema_decay: 1.99"))
    assert run([str(root) if one == "SHARDS" else one for one in arguments]) == 1
    told = capfd.readouterr()
    assert "ema_decay" in told.out + told.err and "Traceback" not in told.err


def test_a_store_without_credentials_is_one_line(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "AWS_ACCESS_KEY_ID" in refused(["ingest", "s3://bucket/corpus"], capfd)


def test_a_remote_that_is_not_there_is_told_the_others(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    last = refused(["push", "--remote", "nix"], capfd)
    assert "'nix'" in last and "local" in last


def test_an_asset_whose_inputs_are_missing_is_not_begun(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    last = refused(["materialize", "curated_set"], capfd)
    assert "filtered_corpus" in last and "emu materialize curated_set --upstream" in last
    assert not (root / "mlflow").exists()


def test_what_nobody_foresaw_says_so() -> None:
    assert "KeyError: 'x'; nobody foresaw" in describe_error(KeyError("x"))
    assert describe_error(ValueError("give another")) == "give another"
    assert describe_error(IsADirectoryError(21, "Is a directory", "/x")).startswith("/x: is a directory; give")


def test_a_keyboard_interrupt_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], root: Path
) -> None:
    from emu_dagster.commands import doctor

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert run(["doctor"]) == 130
    assert "goes on from here" in capfd.readouterr().err
