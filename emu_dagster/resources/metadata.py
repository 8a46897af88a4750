"""What Dagster's pages show of a materialisation: visible pictures, links, and rounded numbers.

The pages render Markdown shorter than OPEN_CHARACTERS and hide longer text behind "[Show Markdown]". So a picture is
not embedded in the event but linked to MLflow's server, to the file of this run, whatever was made since. If that
server is not running, Dagster's page shows where to find the picture.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import dagster as dg

from emu_dagster.machine.addresses import mlflow_address, report_address
from emu_data.formatting import rounded
from emu_steps.layout import Layout

if TYPE_CHECKING:
    import pandas as pd

OPEN_CHARACTERS = 1000  # dagster-webserver 1.13.27, MetadataEntry.tsx


def shown(
    layout: Layout,
    experiment_id: str,
    run_id: str,
    metrics: Mapping[str, float],
    pictures: Mapping[str, str] | None = None,
    pages: Mapping[str, Path] | None = None,
    tables: "Mapping[str, str | pd.DataFrame] | None" = None,
) -> dict[str, Any]:
    """Return the metadata of a MaterializeResult, in the order in which the page shows it.

    experiment_id, run_id: of the MLflow run. pictures: name -> the artifact's path in that run. pages: name -> file
    below data/reports. tables: name -> Markdown (open below OPEN_CHARACTERS) or a DataFrame (always open).
    """
    entries: dict[str, Any] = {}
    mlflow = mlflow_address(layout)
    for name, path in (pictures or {}).items():
        address = f"{mlflow}/get-artifact?{urlencode({'path': path, 'run_uuid': run_id})}"
        text = f"{name} is in MLflow, at {mlflow} while `emu up` runs"
        entries[name] = dg.MetadataValue.md(f"[![{text}]({address})]({address})")
    for name, file in (pages or {}).items():
        # the plain address, because a run's page shows it unchanged, and it explains itself
        entries[name] = dg.MetadataValue.url(report_address(layout, file.relative_to(layout.index.parent).as_posix()))
    address = f"{mlflow}/#/experiments/{experiment_id}/runs/{run_id}"
    entries["mlflow_run"] = dg.MetadataValue.md(f"[this run in MLflow]({address})")
    entries |= {name: rounded(value) for name, value in metrics.items()}
    for name, table in (tables or {}).items():
        if not isinstance(table, str):
            rows = [{str(k): rounded(v) for k, v in row.items()} for row in table.to_dict(orient="records")]
            entries[name] = dg.MetadataValue.table([dg.TableRecord(row) for row in rows])
        else:
            entries[name] = dg.MetadataValue.md(table)
    return entries
