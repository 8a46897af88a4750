"""The one screen that `emu demo` ends with, and data/reports/index.html."""

import json
import os
import platform
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import dagster as dg
from rich.console import Console
from rich.table import Table

from emu_dagster.layout import Layout, project_root
from emu_dagster.params import Params, read_params

TRAININGS = {
    "autoencoder": "Autoencoder",
    "pretrained_low": "Pretraining, low resolution",
    "pretrained_mid": "Pretraining, middle resolution",
    "pretrained_full": "Pretraining, full resolution",
    "quality_tuned": "Quality-tuning",
}
COMMANDS = [
    ("make up", "Dagster's and MLflow's pages, with the graph, the runs and the registry"),
    (".venv/bin/emu doctor", "what is installed, found and missing"),
]


def latest_metadata(instance: dg.DagsterInstance, key: str) -> dict[str, Any]:
    """Metadata of the last materialisation of an asset, as plain values; empty where there is none."""
    event = instance.get_latest_materialization_event(dg.AssetKey(key))
    if event is None or event.asset_materialization is None:
        return {}
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def print_summary(seconds: float | None = None) -> None:
    """Prints funnel counts, the autoencoder's PSNR, losses, verdicts and where everything is; writes the index page."""
    layout = Layout(project_root())
    params = read_params(layout.root / "params.yaml")
    instance = dg.DagsterInstance.get()
    found = {key.to_user_string(): latest_metadata(instance, key.to_user_string()) for key in _asset_keys()}
    registered = json.loads(layout.registered.read_text())
    write_index_page(layout, params, found, registered)

    table = Table(title=f"emu, profile {params.profile}" + (" (a toy scale)" if params.toy else ""), show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, text in summary_lines(found, registered).items():
        table.add_row(name, text)
    if seconds is not None:
        table.add_row("this command", str(timedelta(seconds=round(seconds))))
    table.add_row("reports", str(layout.index.relative_to(layout.root)))
    table.add_row("pages", "make up (Dagster and MLflow), then Ctrl-C")
    table.add_row("try it", generate_command(registered))
    Console().print(table)


def summary_lines(found: Mapping[str, Mapping[str, Any]], registered: Mapping[str, Any]) -> dict[str, str]:
    """The summary's rows as text, from the assets' metadata."""
    raw, kept, wide, curated = (
        found[name] for name in ("raw_corpus", "filtered_corpus", "generalist_selection", "curated_set")
    )
    psnr = {n.removeprefix("psnr_"): v for n, v in found["autoencoder_study"].items() if n.startswith("psnr_")}
    study = {name: value for name, value in psnr.items() if not name.startswith("gain_")}
    appeal, faithful, auto = (found[f"{n}_report"] for n in ("appeal", "faithfulness", "automatic"))
    losses = [found[f"pretrained_{n}"]["val_loss"] for n in ("low", "mid", "full")]
    return {
        "funnel": f"{raw['num_rows']} rows -> {kept['num_images']} filtered -> {wide['num_images']} by generalists -> "
        f"{curated['num_images']} curated ({curated['chosen_by']})",
        "autoencoder": "PSNR "
        + ", ".join(f"{n} {v:.1f}" for n, v in study.items())
        + f" dB; trained on: {found['autoencoder']['val_psnr']:.1f} dB",
        "held-out loss": "low {:.3f}, mid {:.3f}, full {:.3f}".format(*losses)
        + f"; tuned {found['quality_tuned']['val_loss']:.3f} at step {found['quality_tuned']['best_step']:.0f}",
        "appeal": f"tuned wins {appeal['win']:.1f} % [{appeal['win_low']:.1f}, {appeal['win_high']:.1f}], "
        f"loses {appeal['lose']:.1f} % ({appeal['voters']})",
        "faithfulness": f"tuned wins {faithful['win']:.1f} % [{faithful['win_low']:.1f}, {faithful['win_high']:.1f}], "
        f"loses {faithful['lose']:.1f} % ({faithful['voters']})",
        "named in top 5": f"real {auto.get('named_top_5_real', float('nan')):.0f} %, "
        f"pretrained {auto['named_top_5_pretrained']:.0f} %, "
        f"tuned {auto['named_top_5_tuned']:.0f} %",
        "registry": f"models:/{registered['name']}/{registered['version']} is {registered['alias']}",
    }


def generate_command(registered: Mapping[str, Any]) -> str:
    """What to type for pictures of the version that was registered last."""
    model = "" if registered["alias"] == "champion" else f" --model models:/{registered['name']}@{registered['alias']}"
    return f'.venv/bin/emu generate "a red apple" --num 4{model}'


def _asset_keys() -> list[dg.AssetKey]:
    from emu_dagster.definitions import defs

    return list(defs.resolve_asset_graph().get_all_asset_keys())


def write_index_page(
    layout: Layout, params: Params, found: Mapping[str, Mapping[str, Any]], registered: Mapping[str, Any]
) -> None:
    """Writes the report of the trainings and data/reports/index.html over all reports."""
    from emu_dagster.reporting.index import write_index
    from emu_dagster.reporting.training import read_training_stage, total_seconds, write_training_report

    stages = [
        read_training_stage(layout.model(name), title, found[name].get("seconds")) for name, title in TRAININGS.items()
    ]
    write_training_report(layout.report("training"), stages, params)
    sizes = {
        "raw": found["raw_corpus"].get("num_rows"),
        "filtered": found["filtered_corpus"].get("num_images"),
        "generalists": found["generalist_selection"].get("num_images"),
        "curated": found["curated_set"].get("num_images"),
    }
    write_index(
        layout.data / "reports",
        params,
        {name: int(size) for name, size in sizes.items() if size is not None},
        total_seconds(stages),
        f"{os.cpu_count()} CPU cores, {platform.machine()}; seconds are those of the trainings",
        [*COMMANDS, (generate_command(registered), "pictures from the registered model")],
    )
