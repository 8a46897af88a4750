"""Every option of every command refuses values without meaning, with one last line that says what is wrong, no
traceback and no exit code 0."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

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
# (command, parameter): values that are valid there, and why
RIGHT: dict[tuple[str, str], tuple[set[str], str]] = {
    ("generate", "prompt"): ({*TEXTS} - {"", " "}, "any text is a prompt"),
    ("generate", "out"): ({"-1", "no such thing", "\x07", "/nowhere/at/all", ""}, "a folder that is made"),
    ("studio invite", "name"): ({*TEXTS} - {"", " "}, "any text is a name"),
    ("studio reopen", "why"): ({*TEXTS} - {"", " "}, "any text is a reason"),
    ("studio import", "source"): ({*TEXTS} - {"", " "}, "any text is a source"),
    **{(f"studio {one}", "name"): ({*TEXTS} - {"", " "}, "the file is missing") for one in ("export", "import")},
    **{(f"studio {one}", "file"): ({*TEXTS} - {"", " "}, "it is taken for the round") for one in ("export", "import")},
}
# Values for the other parameters of a command, so that only the tried one decides. TOY is a folder of shards.
OPTIONS = {
    "generate": ["--model", "nowhere"],
    "studio invite": ["--role", "king"],
    "studio reopen": ["--why", "more"],
    "studio import": ["--source", "elsewhere"],
}
ARGUMENTS = {
    "generate": ["a red apple"],
    "ingest": ["TOY"],
    "show": ["000000000"],
    "profile": ["smoke"],
    "studio invite": ["Anna"],
    "studio open": ["generalist"],
    **{f"studio {one}": ["x"] for one in ("close", "reopen", "renew", "revoke", "erase")},
    **{f"studio {one}": ["x", "y.csv"] for one in ("export", "import")},
}
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE")


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (words, command) for all commands, including those of groups, and groups that do something themselves."""
    for name, command in (group or cast(Any, typer.main.get_command(app))).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        if getattr(command, "invoke_without_command", True):
            yield (*path, name), command


def parameters() -> Iterator[Any]:
    for words, command in commands():
        for parameter in command.params:
            if parameter.name != "help" and not getattr(parameter, "is_flag", False):
                yield pytest.param(words, parameter, id=" ".join([*words, parameter.opts[0]]))


def required_arguments() -> Iterator[Any]:
    """Each command that cannot run without an argument, with what the first one is called."""
    for words, command in commands():
        missing = [one for one in command.params if one.required and not one.opts[0].startswith("-")]
        if missing:
            yield pytest.param(words, missing[0].metavar or missing[0].name, id=" ".join(words))


@pytest.fixture
def root(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project in which nothing was made, without credentials."""
    shutil.copytree(TOP / "profiles", project / "profiles")
    shutil.copytree(TOP / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    (project / "params.yaml").write_text(text_of("smoke"))
    for name in (*CREDENTIALS, "EMU_STUDIO_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(project / "none"))
    monkeypatch.chdir(project)
    yield project
    S3FileSystem.clear_instance_cache()  # it remembers that there were no credentials


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Return the last line of a command that must fail."""
    code = run(arguments)
    reported = capfd.readouterr()
    assert code not in (0, None), f"{arguments}: {reported.out}"
    assert "Traceback" not in reported.out + reported.err and "the traceback is shown" not in reported.err, reported.err
    last = reported.err.strip().splitlines()[-1].strip()
    assert last and len(last) < 2000
    return last


@pytest.mark.parametrize(("words", "parameter"), list(parameters()))
def test_absurd_values_are_refused_in_one_line(
    words: tuple[str, ...], parameter: Any, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_toy_shards(root, 2)
    (root / "a file").write_text("nothing")
    is_number = isinstance(parameter.default, (int, float))
    command = " ".join(words)
    right, _ = RIGHT.get((command, parameter.name), (set[str](), ""))
    for value in NUMBERS if is_number else (*TEXTS, str(root), str(root / "a file")):
        is_argument = not parameter.opts[0].startswith("-")
        others = [] if is_argument else [str(root / "shards") if g == "TOY" else g for g in ARGUMENTS.get(command, [])]
        tried = ["--", value] if is_argument else [f"{parameter.opts[0]}={value}"]
        last = refused([*words, *OPTIONS.get(command, []), *others, *tried], capfd)
        if value in right or (not is_number and right and value.startswith(str(root))):
            continue  # refused because the project lacks something, here a model
        names = {parameter.name, parameter.opts[0], value.strip() or "empty", repr(value)}
        assert any(name in last for name in names), f"{words} {tried}: {last}"
    assert (root / "params.yaml").read_text() == text_of("smoke")


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_every_command_refuses_unknown_options(words, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "--help" in refused([*words, "--no-such-option"], capfd)


@pytest.mark.parametrize(("words", "argument"), list(required_arguments()))
def test_a_missing_argument_is_named(words, argument: str, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    last = refused([*words, *OPTIONS.get(" ".join(words), [])], capfd)
    assert argument in last and "--help" in last


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
    reported = capfd.readouterr()
    assert "ema_decay" in reported.out + reported.err and "Traceback" not in reported.err


def test_a_store_without_credentials_is_one_line(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "AWS_ACCESS_KEY_ID" in refused(["ingest", "s3://bucket/corpus"], capfd)


def test_an_unknown_remote_is_refused_with_the_known_ones(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    last = refused(["push", "--remote", "nix"], capfd)
    assert "'nix'" in last and "local" in last


def test_an_asset_whose_inputs_are_missing_is_not_begun(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    last = refused(["materialize", "curated_set"], capfd)
    assert "filtered_corpus" in last and "emu materialize curated_set --upstream" in last
    assert not (root / "mlflow").exists()


@pytest.mark.parametrize("command", [["profile", "paper"], ["demo", "--profile", "paper"]])
def test_edited_params_are_not_replaced(command, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edited = text_of("smoke") + "# mine\n"
    (root / "params.yaml").write_text(edited)
    assert "--overwrite" in refused(command, capfd)
    assert (root / "params.yaml").read_text() == edited and not list(root.glob("params.yaml.*"))


def test_what_overwrite_replaces_is_kept_each_time(root: Path) -> None:
    params, kept = root / "params.yaml", ("params.yaml.bak", "params.yaml.bak-2")
    assert run(["profile", "paper"]) == 0  # an unchanged profile: nothing to keep
    assert params.read_text() == text_of("paper") and not list(root.glob("params.yaml.*"))
    for number, name in enumerate(kept):
        params.write_bytes(b"\xff" + str(number).encode())  # not even text
        assert run(["profile", "smoke", "--overwrite"]) == 0
        assert params.read_text() == text_of("smoke")
        assert (root / name).read_bytes() == b"\xff" + str(number).encode()


def test_an_unexpected_error_says_so() -> None:
    assert "unexpected KeyError: 'x'" in describe_error(KeyError("x"))
    assert describe_error(ValueError("give another")) == "give another"
    assert describe_error(IsADirectoryError(21, "Is a directory", "/x")).startswith("/x: is a directory; give")


def test_a_keyboard_interrupt_says_that_the_command_continues(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], root: Path
) -> None:
    from emu_dagster.commands import doctor

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert run(["doctor"]) == 130
    assert "continues from here" in capfd.readouterr().err
