"""The one screen that `emu demo` ends with."""

import json
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from emu_steps.front_page import generate_command, read_registered, read_report, read_sizes
from emu_steps.layout import Layout, project_root
from emu_steps.params import read_params


def print_summary(seconds: float | None = None) -> None:
    """Prints funnel counts, the autoencoder's PSNR, losses, verdicts and where everything is."""
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
    """The summary's rows as text, from the files that the assets wrote."""
    from emu_steps.choosing import read_chosen_by

    sizes, registered = read_sizes(layout), read_registered(layout)
    study, auto = read_report(layout, "autoencoder_study"), read_report(layout, "automatic_report")
    psnr = {variant["name"]: variant["reconstruction"]["psnr"]["estimate"] for variant in study["variants"]}
    names = ("autoencoder", "pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned")
    learned = {name: json.loads((layout.model(name) / "meta.json").read_text())["result"] for name in names}
    losses = {name: result["metrics"]["val_loss"] for name, result in learned.items()}
    chosen_by = read_chosen_by(layout)
    return {
        "funnel": f"{sizes['raw']} rows -> {sizes['filtered']} filtered -> {sizes['generalists']} by generalists -> "
        f"{sizes['curated']} curated ({chosen_by})",
        "autoencoder": "PSNR "
        + ", ".join(f"{name} {value:.1f}" for name, value in psnr.items())
        + f" dB; trained on: {learned['autoencoder']['metrics']['val_psnr']:.1f} dB",
        "held-out loss": f"low {losses['pretrained_low']:.3f}, mid {losses['pretrained_mid']:.3f}, full "
        f"{losses['pretrained_full']:.3f}; tuned {losses['quality_tuned']:.3f} at step "
        f"{learned['quality_tuned']['best_step']}",
        "appeal": _describe_preference(read_report(layout, "appeal_report")),
        "faithfulness": _describe_preference(read_report(layout, "faithfulness_report")),
        "named in top 5": ", ".join(
            f"{who} {auto['naming'][who]['top_5']['estimate']:.0f} %"
            for who in ("real", *auto["contestants"])
            if who in auto["naming"]
        ),
        "registry": f"models:/{registered['name']}/{registered['version']} is {registered['alias']}",
    }


def _describe_preference(report: dict[str, Any]) -> str:
    found = report["preference"]
    win, lose = found["win"], found["lose"]
    span = "" if win["low"] is None else f" [{win['low']:.1f}, {win['high']:.1f}]"
    candidate, _ = report["comparison"]
    return f"{candidate} wins {win['estimate']:.1f} %{span}, loses {lose['estimate']:.1f} % ({report['voters']})"
