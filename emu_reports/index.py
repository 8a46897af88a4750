"""The index: one page made of the reports' cards, the first one that a visitor sees."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from emu_data.files import atomic_dir, atomic_file
from emu_reports.page import SCHEMA, TOY_LABEL, Run, describe_run, render, to_json
from emu_reports.paper import FUNNEL
from emu_reports.verdict import describe_verdict

PICTURE = re.compile(r'(<img src=")([^"]+)(")')


def write_index(
    index: Path,
    pictures: Path,
    folders: Sequence[Path],
    run: Run,
    sizes: Mapping[str, int],
    registered: Mapping[str, Any] | None = None,
    commands: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the page `index` from the cards of the reports in `folders`, and the folder `pictures`; all are next to
    each other.

    The page's pictures are copies, so that they still match its numbers after a report is made again. A report that is
    missing, or was written by an older version, is left out and listed as missing. sizes: number of pictures at "raw",
    "filtered", "generalists" and "curated", as far as known. registered: data/registered_model.json, whose verdict the
    page begins with. commands: what to type and what it does, shown at the end.

    Raises ValueError if a report is of another profile.
    """
    cards: list[Path] = []
    labels: list[str] = []
    missing: list[str] = []
    for folder in folders:
        path = folder / "report.json"
        report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if report.get("schema") != SCHEMA:
            missing.append(folder.name)
            continue
        if report["profile"] != run.profile:
            raise ValueError(
                f"{path} is of profile {report['profile']}, but this page is of {run.profile}; materialise "
                f"{folder.name} again first"
            )
        cards += folder.glob("cards/*.html")
        labels += [f"{folder.name.removesuffix('_report')}: {text}" for text in report["labels"] if text != TOY_LABEL]
    content = {
        **describe_run(run, *labels),
        "has_panel": any("rubric panel" in text for text in labels),
        "missing": missing,
        "sizes": dict(sizes),
        "paper_sizes": FUNNEL,
        "verdict": describe_verdict(registered),
        "commands": [{"command": command, "what": what} for command, what in commands],
    }
    in_order = sorted(cards, key=lambda card: (card.name, card))
    shown = [Markup(card.read_text(encoding="utf-8")) for card in in_order]  # already escaped when they were written
    html = render("index", {**to_json(content), "cards": shown}, {}, root="")
    with atomic_dir(pictures) as partial:

        def keep(match: re.Match[str]) -> str:
            name = match[2].replace("/", "-")
            shutil.copyfile(index.parent / match[2], partial / name)
            return f"{match[1]}{pictures.name}/{name}{match[3]}"

        html = PICTURE.sub(keep, html)
    with atomic_file(index) as temporary:
        temporary.write_text(html, encoding="utf-8")
