"""How fast commands start, judged by the libraries that they load: a time would depend on what else the machine
does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu_dagster.declarations import closures, code_hashes
from emu_dagster.declarations.code_hashes import digest_sources
from tests.profiles import text_of

TOP = Path(__file__).parents[2]
# libraries whose import takes a tenth of a second or more
HEAVY = {
    *("torch", "diffusers", "transformers", "torchvision", "open_clip", "easyocr", "sklearn", "matplotlib"),
    *("dagster", "mlflow", "ray", "pandas", "scipy.stats", "duckdb"),
}
TABLES = {"pandas", "duckdb"}
GRAPH = {"dagster", *TABLES}  # Dagster's definitions, and votes that may have grown
# command -> what of HEAVY it may load
ALLOWED = {
    "--help": set(),
    "status": GRAPH,
    "materialize --dry-run": GRAPH,
    "prune": GRAPH,
    "doctor": GRAPH,  # torch is imported in its own process, while the rest is examined
    "votes verify": TABLES,
    "funnel": TABLES,
    "show 000010007": TABLES,
    "profile smoke": set(),
    "ingest nowhere": TABLES,
    "generate x --model ours": {"torch", "diffusers", "transformers"},
}
SCRIPT = """
import json, sys
from emu_dagster.machine.environment import prepare_environment
prepare_environment()
from emu_dagster.cli import run
code = run(sys.argv[2:])
print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))
"""


def loaded(root: Path, *arguments: str) -> set[str]:
    """Return what of HEAVY a command loads in a project, whatever its exit code."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(sorted(HEAVY)), *arguments]
    environment = os.environ | {"EMU_ROOT": str(root), "PYTHONPATH": str(TOP), "DAGSTER_HOME": str(root / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A project in which nothing was made."""
    (tmp_path / "params.yaml").write_text(text_of("smoke"))
    (tmp_path / "home").mkdir()
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "model_index.json").write_text('{"_class_name": ["pipeline", "EmuPipeline"]}')
    (tmp_path / "profiles").symlink_to(TOP / "profiles")
    return tmp_path


@pytest.mark.parametrize("command", ALLOWED)
def test_a_command_loads_only_the_heavy_libraries_that_it_needs(fresh, command):
    assert loaded(fresh, *command.split()) <= ALLOWED[command]


@pytest.mark.slow
def test_a_plan_that_was_made_before_loads_no_network(fresh):
    command = ("plan", "--profile", "smoke")
    assert "torch" in loaded(fresh, *command)
    assert loaded(fresh, *command) <= {"pandas"}


def test_kept_digests_of_code_equal_computed_ones_until_a_file_changes(tmp_path):
    function, file = code_hashes.code_hash, tmp_path / code_hashes.FILE
    expected = closures.hash_code(function)
    assert [code_hashes.code_hash(function, tmp_path) for _ in range(2)] == [expected] * 2
    kept = json.loads(file.read_text())
    # what is kept is used as long as no source file changes, and no longer
    (name,) = set(kept) - {"sources"}
    file.write_text(json.dumps(kept | {name: "kept"}))
    assert code_hashes.code_hash(function, tmp_path) == "kept"
    file.write_text(json.dumps(kept | {name: "kept", "sources": "others"}))
    assert code_hashes.code_hash(function, tmp_path) == expected
    file.write_text("no JSON")
    assert code_hashes.code_hash(function, tmp_path) == expected


def test_the_digest_of_the_sources_changes_with_each_file_of_ours(tmp_path):
    folder = tmp_path / "emu_data" / "templates"
    folder.mkdir(parents=True)
    seen = {digest_sources(tmp_path)}
    for change in (
        lambda: (folder / "page.html").write_text("a"),
        lambda: (folder / "page.html").write_text("b"),
        lambda: (folder / "page.html").rename(folder / "other.html"),
        lambda: (tmp_path / "emu_data" / "new.py").write_text(""),
    ):
        change()
        seen.add(digest_sources(tmp_path))
    assert len(seen) == 5
