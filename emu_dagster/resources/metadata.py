"""What Dagster's pages show of a materialisation: pictures openly, links, numbers as a person reads them.

The pages show Markdown of fewer than OPEN_CHARACTERS as it is meant and hide longer text behind "[Show Markdown]". So a
picture is not put into the event but linked to, as MLflow's server hands it out: of this very run, whatever was made
since. While that page is not up, the page shows in its place where to find it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import dagster as dg

from emu_dagster.resources.addresses import mlflow_address, report_address
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
    """Metadata of a MaterializeResult, in the order in which the page shows it.

    experiment_id, run_id: of the MLflow run. pictures: name -> the artifact's path in that run. pages: name -> file
    below data/reports. tables: name -> Markdown (open below 1000 characters) or a DataFrame (always open).
    """
    entries: dict[str, Any] = {}
    mlflow = mlflow_address(layout)
    for name, path in (pictures or {}).items():
        address = f"{mlflow}/get-artifact?{urlencode({'path': path, 'run_uuid': run_id})}"
        told = f"{name}: MLflow has it, on {mlflow} while `emu up` runs"
        entries[name] = dg.MetadataValue.md(f"[![{told}]({address})]({address})")
    for name, file in (pages or {}).items():
        # not in words: a run's page, too, shows an address openly, and this one says what it is
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
