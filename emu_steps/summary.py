"""The summary of one screen with which `emu demo` ends."""

import json
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from emu_data.formatting import format_number, format_percent, format_span
from emu_reports.held_out import read_held_out
from emu_reports.verdict import describe_verdict
from emu_steps.front_page import TRAININGS, generate_command, read_registered, read_report, read_sizes
from emu_steps.layout import Layout, project_root
from emu_steps.params import read_params


def print_summary(seconds: float | None = None) -> None:
    """Print funnel counts, the autoencoder's PSNR, losses, verdicts and where everything is. seconds: how long the
    command took, shown if given.
    """
    layout = Layout(project_root())
    params = read_params(layout.root / "params.yaml")
    table = Table(title=f"emu, profile {params.profile}" + (" (a toy scale)" if params.toy else ""), show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, text in summary_lines(layout).items():
        table.add_row(name, text)
    if seconds is not None:
        table.add_row("this command", str(timedelta(seconds=round(seconds))))
    table.add_row("reports", str(layout.index.relative_to(layout.root)))
    table.add_row("pages", "make up (Dagster, MLflow and the reports), then Ctrl-C")
    table.add_row("try it", generate_command(read_registered(layout)))
    Console().print(table)


def summary_lines(layout: Layout) -> dict[str, str]:
    """Return the summary's rows, name -> text, from the files that the assets wrote."""
    from emu_steps.choosing import read_chosen_by

    sizes, registered = read_sizes(layout), read_registered(layout)
    study, auto = read_report(layout, "autoencoder_study"), read_report(layout, "automatic_report")
    psnr = {variant["name"]: variant["reconstruction"]["psnr"]["estimate"] for variant in study["variants"]}
    learned = {name: read_held_out(layout.model(name)) for name in TRAININGS}
    trained_psnr = json.loads((layout.model("autoencoder") / "meta.json").read_text())["result"]["metrics"]["val_psnr"]
    chosen_by = read_chosen_by(layout)
    return {
        "verdict": "{headline}: {because}".format(**describe_verdict(registered)),
        "funnel": f"{sizes['raw']} rows -> {sizes['filtered']} filtered -> {sizes['generalists']} by generalists -> "
        f"{sizes['curated']} curated ({chosen_by})",
        "autoencoder": "PSNR "
        + ", ".join(f"{name} {format_number(value)}" for name, value in psnr.items())
        + f" dB; trained on: {format_number(trained_psnr)} dB",
        "held-out loss": "\n".join(f"{name}: {found.describe()}" for name, found in learned.items()),
        "appeal": _describe_preference(read_report(layout, "appeal_report")),
        "faithfulness": _describe_preference(read_report(layout, "faithfulness_report")),
        "named in top 5": ", ".join(
            f"{who} {format_percent(auto['naming'][who]['top_5']['estimate'])}"
            for who in ("real", *auto["contestants"])
            if who in auto["naming"]
        )
        or "unknown: no prompt is a caption of the corpus",
    }


def _describe_preference(report: dict[str, Any]) -> str:
    found = report["preference"]
    if found is None:
        return "unknown: nobody voted, and the judge knows the subject of no prompt"
    win, lose = found["win"], found["lose"]
    span = f" ({ends})" if (ends := format_span(win)) else ""
    candidate, _ = report["comparison"]
    return (
        f"{candidate} wins {format_percent(win['estimate'])}{span}, loses {format_percent(lose['estimate'])} "
        f"({report['voters']})"
    )
