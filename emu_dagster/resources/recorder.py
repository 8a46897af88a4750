"""What every asset does besides its work: params, inputs, the MLflow run, the DVC commit, the metadata.

An asset opens a record, works, and returns `record.result(...)`. The md5 that DVC gives its output is its data version
in Dagster and its digest in MLflow: the one key that all three hold.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from PIL import Image

from emu_dagster.declarations.given import give_params, values_of
from emu_dagster.machine.commit import running_commit
from emu_dagster.resources.addresses import report_address
from emu_dagster.resources.dvc import DvcRecord, Snapshot
from emu_dagster.resources.gpu import TrainingProcess
from emu_dagster.resources.instance import INPUTS
from emu_dagster.resources.metadata import shown
from emu_dagster.resources.mlflow import MlflowTracking
from emu_steps.layout import Layout, project_root
from emu_steps.params import Params, read_params

if TYPE_CHECKING:
    import pandas as pd

    from emu_dagster.declarations.declared import Declaration


@dataclass
class Record:
    """One materialisation in progress: what it may read and write, its params, and what it reports.

    layout and params are restricted to what the asset declared (emu_dagster.declarations.given). inputs: asset -> md5
    of all that it reads, as far as DVC has recorded it.
    """

    context: dg.AssetExecutionContext
    key: str
    layout: Layout
    params: Params
    inputs: dict[str, str]
    dvc: DvcRecord
    before: Snapshot
    trainer: TrainingProcess
    mlflow_environment: dict[str, str]
    run_id: str
    profile: str

    @property
    def section(self) -> Any:
        """The section of params.yaml that has the asset's name."""
        return getattr(self.params, self.key)

    def trained(self, result: Mapping[str, Any]) -> dg.MaterializeResult:
        """The result of an asset that trained one model: the metrics of the published step, the held-out loss of that
        step and of the best one, and the preview."""
        from emu_reports.held_out import read_held_out

        folder = self.layout.model(self.key)
        meta, held_out = json.loads((folder / "meta.json").read_text()), read_held_out(folder)
        numbers = {
            **result["metrics"],
            "published_step": held_out.published_step,
            "published_val_loss": held_out.published_loss,
            "best_step": held_out.best_step,
            "best_val_loss": held_out.best_loss,
            **result.get("timings", {}),
            "num_parameters": meta["num_parameters"],
            "num_rows": meta["num_rows"],
        }
        pictures: dict[str, Path | Image.Image] = {"preview": folder / "preview.png"}
        return self.result(numbers, pictures=pictures, tables={"held_out_loss": held_out.describe()})

    def result(
        self,
        metrics: Mapping[str, float],
        pictures: Mapping[str, Path | Image.Image] | None = None,
        pages: Mapping[str, Path] | None = None,
        tables: "Mapping[str, str | pd.DataFrame] | None" = None,
        data_version: str | None = None,
    ) -> dg.MaterializeResult:
        """Commits the output to DVC and tells Dagster and MLflow of it.

        metrics: plain names; pictures: contact sheets, stored in MLflow and shown by Dagster from there; pages: reports
        on disk; tables: Markdown, or DataFrames.
        """
        import mlflow

        md5 = self.dvc.record(self.key, self.before)
        numbers = {name: float(value) for name, value in metrics.items() if value == value}
        mlflow.log_metrics(numbers)
        mlflow.set_tag("emu.md5", md5)
        logged: dict[str, str] = {}
        for name, picture in (pictures or {}).items():
            if isinstance(picture, Path):
                mlflow.log_artifact(str(picture))
                logged[name] = picture.name
            else:
                logged[name] = f"{name}.png"
                mlflow.log_image(picture, logged[name])
        self._copy_pages((pages or {}).values(), md5)
        experiment_id = self.mlflow_environment["MLFLOW_EXPERIMENT_ID"]
        entries = shown(self.layout, experiment_id, self.run_id, metrics, logged, pages, tables)
        facts: dict[str, Any] = {
            "profile": self.profile,
            "md5": md5,
            "commit": running_commit(),
            INPUTS: dg.MetadataValue.json(self.before.describe()),
        }
        if changed := self.dvc.changed_since(self.before):
            # what was read of a dep that changed meanwhile cannot be known to the byte; the asset is stale now
            facts["changed_while_it_was_made"] = ", ".join(changed)
        return dg.MaterializeResult(metadata=entries | facts, data_version=dg.DataVersion(data_version or md5))

    def _copy_pages(self, pages: Iterable[Path], md5: str) -> None:
        """Logs each page to MLflow as one file, which says when and by which commit it was made (the page must not)."""
        import mlflow

        from emu_reports.standalone import standalone

        run, top = mlflow.active_run(), self.layout.index.parent
        assert run is not None
        began = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
        facts = {
            "MLflow's copy, of the run begun": f"{began:%Y-%m-%d %H:%M} UTC",
            "code of commit": running_commit(),
            f"{self.key} has md5": md5,
        }
        for page in pages:
            copied = standalone(page, top, lambda path: report_address(self.layout, path), facts)
            mlflow.log_text(copied, f"reports/{page.relative_to(top).as_posix()}")


class Recorder(dg.ConfigurableResource):
    """Opens records; the one resource that every asset takes."""

    mlflow: MlflowTracking
    dvc: DvcRecord

    @contextmanager
    def open(
        self, context: dg.AssetExecutionContext, declaration: "Declaration", trainer: TrainingProcess
    ) -> Iterator[Record]:
        """The record of a materialisation of a declared asset.

        Raises ValueError where params.yaml, code or files that were brought along are no longer those that the graph
        was loaded with: what is recorded must be what was used.
        """
        import mlflow

        key = declaration.key
        layout = Layout(project_root())
        with self.dvc.hold(key):
            params = read_params(layout.root / "params.yaml")
            before = self.dvc.snapshot(key)
            loaded_with = context.assets_def.code_versions_by_key[context.asset_key]
            # read again: what the snapshot took down must be what the asset is given
            now = read_params(layout.root / "params.yaml")
            if any(loaded_with != declaration.code_version(found, layout) for found in (params, now)):
                raise ValueError(
                    f"{key}: params.yaml or the code changed after this graph was loaded; start the command again, or "
                    "reload the definitions on Dagster's page. What is finished stays"
                )
            reads = declaration.inputs(params, layout)
            inputs = {asset: md5 for asset in sorted(reads) if (md5 := self.dvc.digest_of(asset))}
            given = values_of(params, [*declaration.params, *declaration.how])
            with self.mlflow.run_for(context, given, inputs) as run:
                mlflow.set_tags(
                    {
                        "emu.profile": params.profile,
                        "emu.toy": str(params.toy).lower(),
                        "emu.commit": running_commit(),
                    }
                )
                names = (*declaration.params, *declaration.how, *declaration.files)
                yield Record(
                    context,
                    key,
                    Layout(layout.root, frozenset([key, *reads])),
                    give_params(params, key, names),
                    inputs,
                    self.dvc,
                    before,
                    trainer,
                    self.mlflow.child_environment(run),
                    run.info.run_id,
                    params.profile,
                )
