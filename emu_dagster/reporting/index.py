"""The index: one page from the report.json files of all reports; what a stranger sees first."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emu_dagster.reporting.page import SCHEMA, Run, describe_run, to_json, write_page
from emu_dagster.reporting.paper import FUNNEL
from emu_dagster.reporting.training import loss_chart


def write_index(
    reports: Path,
    run: Run,
    sizes: Mapping[str, int],
    seconds: float | None = None,
    machine: str = "",
    commands: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write `reports`/index.html from the reports that lie in `reports`/NAME/ and return its path.

    Parts whose report is missing, or was written by an older version, are left out and said to be missing.
    sizes: pictures at "raw", "filtered", "generalists", "curated", as far as they are known. seconds: of the
    whole run. machine: on what it ran. commands: what to type and what it does, shown at the end.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(reports.glob("*/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report.get("schema") != SCHEMA:
            continue
        name = report["axis"] if report["kind"] == "preference" else report["kind"]
        found[name] = {**report, "folder": path.parent.name}
    voters = [f"{axis}: {found[axis]['voters']}" for axis in ("appeal", "faithfulness") if axis in found]
    content = {
        **describe_run(run, *voters),
        "has_panel": any("rubric panel" in text for text in voters),
        "reports": found,
        "sizes": dict(sizes),
        "paper_sizes": FUNNEL,
        "seconds": seconds,
        "machine": machine,
        "commands": [{"command": command, "what": what} for command, what in commands],
    }
    charts = {stage["name"]: loss_chart(stage["curves"]) for stage in found.get("training", {}).get("stages", [])}
    path = reports / "index.html"
    write_page(path, "index", to_json(content), charts)
    return path
