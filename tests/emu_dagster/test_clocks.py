"""What an asset records contains no clock: two runs of the same project on the same machine give the same bytes."""

import ast
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from emu_dagster.declarations.closures import PACKAGES
from emu_data import cascade_order
from emu_data.costs import READING
from emu_data.ledger import read_ledger
from emu_data.signals import Columns, LazySample, Measure, Signal
from emu_data.signals.aesthetics import AestheticsSignal
from emu_data.signals.caption import CaptionSignal
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.looks import LooksSignal
from emu_data.signals.safety import SafetySignal
from emu_steps import filtering
from emu_steps.layout import Layout
from emu_steps.params import Params, read_params
from tests.profiles import text_of
from tests.shards import write_toy_shards

ROOT = Path(__file__).parents[2]

# Put first on the path of the measuring children, which import it at their start: a clock whose readings are
# so many seconds apart.
FAKE_CLOCK = """
import time
looks = 0
def clock():
    global looks
    looks += 1
    return float({later})
time.perf_counter = time.process_time = clock
"""


class ColourSignal(Signal):
    """Concepts of toy shards, from the caption, and a rank, a third of which are 0."""

    name: ClassVar = "alignment"
    columns: ClassVar = {"concept": "string", "concept_score": "Float64", "alignment_rank": "Float64"}
    needs: ClassVar = "row"
    milliseconds: ClassVar = 0.001

    def settings(self) -> None:
        return None

    def describe(self) -> str:
        return "colours, by the caption"

    def load(self) -> Measure:
        return self._measure

    def _measure(self, batch: Sequence[LazySample]) -> Columns:
        ranks = [int(record.key) % 3 / 2 for record in batch]
        colours = [record.caption.split()[0] for record in batch]
        return {"concept": colours, "concept_score": [1.0] * len(batch), "alignment_rank": ranks}


SIGNALS = (
    GeometrySignal(),
    CaptionSignal(),
    SafetySignal(detector="none"),
    LooksSignal(),
    AestheticsSignal(),
    ColourSignal(),
)


def run_filters(folder: Path, monkeypatch: pytest.MonkeyPatch, later: str) -> dict[str, float]:
    """Run the assets filter_ledger and filtered_corpus of a project of toy pictures with a clock; return what the pilot
    took."""
    fakes = folder / "fakes"
    fakes.mkdir(parents=True)
    (fakes / "sitecustomize.py").write_text(FAKE_CLOCK.format(later=later))
    (folder / "data").mkdir()
    shards, _ = write_toy_shards(folder / "data", 40)
    shards.rename(folder / "data" / "raw")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(fakes), *sys.path])
        patch.setattr(cascade_order, "NUM_PILOT", 12)
        patch.setattr(filtering, "build_signals", lambda layout, params: list(SIGNALS))
        params, layout = toy_params(folder), Layout(folder)
        filtering.measure_corpus(layout, params)
        filtering.publish_filtered(layout, params, {})
    noted = json.loads((layout.cache / "pilot_costs.json").read_text())
    return {name: cost["core"] for name, cost in noted.items() if name != READING}  # that one is this process's


def toy_params(folder: Path) -> Params:
    """Gates that reject some pictures by caption and by rank, so that what is measured depends on the order."""
    given = yaml.safe_load(text_of("smoke"))
    section = given["filter_ledger"]
    section["policy"] |= {
        "min_side": 8,
        "max_text_area": None,
        "max_read_text_area": None,
        "min_characters": 11,
        "min_alignment_rank": 0.4,
    }
    section["control_share"] = 0.0
    for name in (
        "pretrained_low",
        "pretrained_mid",
        "pretrained_full",
    ):  # a picture is measured further as long as one policy may keep it
        given[name]["gates"] = ["caption", "alignment"]
    given["filtered_corpus"] |= {"num_images": 4, "max_concept_share": 1.0}
    (folder / "params.yaml").write_text(yaml.safe_dump(given))
    return read_params(folder / "params.yaml")


def recorded(folder: Path) -> dict[str, bytes]:
    paths = [p for p in (folder / "data").rglob("*") if p.is_file() and p.relative_to(folder).parts[1] != "cache"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_filters_record_the_same_bytes_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_filters(tmp_path / "one", monkeypatch, "looks**3")
    second = run_filters(tmp_path / "two", monkeypatch, "1e9 - 1e9 / looks")
    ranked = [sorted(taken, key=lambda name: taken[name]) for taken in (first, second)]
    assert ranked[0] != ranked[1] and set(first) == set(second)  # these clocks would give different orders
    assert (read_ledger(tmp_path / "one" / "data" / "ledger")["unmeasured"] != "").any()  # so the order matters
    one, two = recorded(tmp_path / "one"), recorded(tmp_path / "two")
    outs = ("data/signals/order.json", "data/ledger/", "data/filtered/", "data/reports/filtered_corpus/")
    assert all(any(name.startswith(out) for name in one) for out in outs)
    assert sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name)) == []


# Files of the packages that read a clock, or something else that differs between any two runs, and where it ends up.
# What ends up in an output of an asset must not be here.
ALLOWED = {
    "emu_data/cascade.py": "seconds of reading a shard, which end in data/cache/pilot_costs.json",
    "emu_data/costs.py": "seconds of cores and networks, likewise",
    "emu_data/signals/embedding.py": "a file's time says when its digest is read anew",
    "emu_data/engine/cluster.py": "how long to wait for a cluster",
    "emu_data/engine/guard.py": "how long to wait for a child; a record that hangs fails by a limit, which is named",
    "emu_data/bodies.py": "a file's time says when its index is read anew",
    "emu_data/copies.py": "a file's time says when a copy is fetched anew, and which copies go first",
    "emu_data/files.py": "names of files that are renamed when they are whole",
    "emu_data/votes/log.py": "when a person voted: a log of votes is an input; the rubric panel's votes carry no time",
    "emu_models/training/row_file.py": "files' times say when the rows of a training are listed anew",
    "emu_models/training/loop.py": "when to save, and rates for MLflow and Dagster",
    "emu_models/training/prefetch.py": "the loader's share of the time, for MLflow and Dagster",
    "emu_dagster/cli/graph.py": "shown on the terminal",
    "emu_dagster/commands/driver.py": "shown on the terminal",
    "emu_dagster/commands/pages.py": "how long to wait for servers",
    "emu_steps/params/reading.py": "says when params.yaml is read anew",
    "emu_dagster/machine/processes.py": "a lock's file says since when",
    "emu_dagster/training/progress.py": "events on a run's page",
    "emu_dagster/commands/pruning.py": "whether what is to be removed is older than what replaced it and idle",
    "emu_dagster/registering.py": "when it was judged, in MLflow's description of the version",
    "emu_dagster/defs/requests.py": "when a sensor asks again",
    "emu_dagster/resources/dvc_files.py": "says when a folder's md5 is computed anew",
    "emu_dagster/resources/dvc_lock.py": "whether a lock's holder is older than the lock",
    "emu_dagster/resources/gpu.py": "names of files of messages",
    "emu_dagster/resources/outbox.py": "times of metrics in MLflow",
}


def looks_at_a_clock(tree: ast.AST) -> set[str]:
    """Names of the clocks, file times, unseeded generators and random names that a module uses."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            owner, _, last = text.rpartition(".")
            is_time = owner == "time" and last in vars(time) and last != "sleep"
            is_date = owner.endswith(("datetime", "date")) and last in ("now", "utcnow", "today")
            is_file = last in FILE_TIMES or last in ("getmtime", "getctime", "getatime")
            if is_time or is_date or is_file or owner in ("uuid", "secrets", "random") or text == "os.urandom":
                found.add(text if not is_file else last)
        elif isinstance(node, ast.ImportFrom) and node.module in ("time", "uuid", "secrets", "random"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} - {"time.sleep"}
        elif isinstance(node, ast.Call) and not node.args and not node.keywords:
            text = ast.unparse(node.func)
            if text.endswith("default_rng") or text.endswith(".seed"):
                found.add(f"{text}()")
    return found


FILE_TIMES = {f"st_{kind}time{unit}" for kind in "mca" for unit in ("", "_ns")}


def test_no_other_module_reads_a_clock() -> None:
    files = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    looking = {
        path.relative_to(ROOT).as_posix(): found
        for path in files
        if (found := looks_at_a_clock(ast.parse(path.read_text())))
    }
    assert looking.keys() == ALLOWED.keys(), "say in ALLOWED where it ends; an output of an asset must hold no clock"


@pytest.mark.parametrize(
    "text",
    ["time.time()", "from time import monotonic", "x.stat().st_mtime_ns", "datetime.datetime.now(UTC)", "uuid.uuid4()"]
    + ["np.random.default_rng()", "random.random()", "os.path.getmtime(x)", "from uuid import uuid4", "date.today()"],
)
def test_the_search_finds_clocks(text: str) -> None:
    assert looks_at_a_clock(ast.parse(text))
    assert not looks_at_a_clock(ast.parse("time.sleep(1); np.random.default_rng(0); x.st_size; runtime.time_limit"))
