"""The boundaries of the design: which package may import which, and what the code server must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "open_clip", "easyocr", "mlflow", "emu_models"}


def test_import_rules_hold() -> None:
    """The contracts of pyproject.toml ([tool.importlinter])."""
    program = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def imported_at_module_level(path: Path) -> set[str]:
    """Return the top-level packages that importing the file imports: outside functions, and not for type checkers
    only."""
    names: set[str] = set()
    pending = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return names


@pytest.mark.parametrize("folder", ["defs", "resources"])
def test_definitions_and_resources_import_models_inside_functions(folder: str) -> None:
    files = sorted((ROOT / "emu_dagster" / folder).glob("*.py"))
    assert files
    heavy = {path.name: found for path in files if (found := imported_at_module_level(path) & HEAVY)}
    assert heavy == {}


def test_code_server_loads_no_network_code() -> None:
    """Importing the definitions must not import torch: every child process of Dagster would pay for it."""
    code = "import sys, emu_dagster.definitions; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(done.stdout.split()) == set()


def test_training_child_can_be_stopped_before_its_imports_are_done() -> None:
    """`emu_dagster.machine.stopping` must import little: signals are handled from the first moments of a child."""
    code = "import sys, emu_dagster.machine.stopping; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (HEAVY | {"dagster", "numpy", "pandas"}) & set(done.stdout.split()) == set()


def test_no_address_of_a_registry_and_no_path_of_a_machine_is_tracked() -> None:
    """Versions and hashes are pinned; where packages come from is each machine's configuration."""
    pattern = r"(npm[j]s\.[a-z]|python[h]osted|pyp[i]\.org|(deb|security)\.[d]ebian|/(home|root|work)/[a-z])"
    command = ["git", "grep", "-nIE", pattern, "--", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode > 1:
        pytest.skip("not a git clone")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("tests/test_boundaries.py:")]
    assert lines == []
