"""What every asset does in addition to its work: params, inputs, the MLflow run, the DVC commit, the metadata.

An asset opens a record, works, and returns `record.result(...)`. The md5 that DVC gives its output is its data version
in Dagster and its digest in MLflow: the one key that all three share.
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
from emu_dagster.machine.addresses import report_address, studio_address
from emu_dagster.machine.commit import running_commit
from emu_dagster.resources.dvc import DvcRepo, Snapshot
from emu_dagster.resources.gpu import TrainingProcess
from emu_dagster.resources.instance import INPUTS
from emu_dagster.resources.metadata import shown
from emu_dagster.resources.mlflow import MlflowTracking
from emu_steps.layout import Layout, project_root
from emu_steps.needs import refuse_shortage
from emu_steps.params import Params, read_params

if TYPE_CHECKING:
    import pandas as pd

    from emu_dagster.declarations.declared import Declaration


@dataclass
class Record:
    """One materialisation in progress: what it may read and write, its params, and what it reports.

    layout and params are restricted to what the asset declared (emu_dagster.declarations.given). inputs: asset -> md5,
    for everything that it reads and DVC has recorded.
    """

    context: dg.AssetExecutionContext
    key: str
    layout: Layout
    params: Params
    inputs: dict[str, str]
    dvc: DvcRepo
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
        """Return the result of an asset that trained one model: the metrics of the published step, the held-out loss of
        that step and of the best one, and the preview.
        """
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
        """Commit the output to DVC and report it to MLflow; return what Dagster records.

        metrics: name -> number, NaN is not logged; pictures: contact sheets, which are stored in MLflow and shown by
        Dagster from there; pages: reports on disk; tables: Markdown, or DataFrames. data_version: if not the md5.
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
            # if a dep changed meanwhile, it is unknown which of its bytes were read; the asset is now stale
            facts["changed_while_it_was_made"] = ", ".join(changed)
        return dg.MaterializeResult(metadata=entries | facts, data_version=dg.DataVersion(data_version or md5))

    def _copy_pages(self, pages: Iterable[Path], md5: str) -> None:
        """Log each page to MLflow as one file that says when and by which commit it was made. (The page on disk must
        not say so: its bytes must depend only on the asset's inputs.)
        """
        import mlflow

        from emu_reports.standalone import standalone

        run, top = mlflow.active_run(), self.layout.index.parent
        assert run is not None
        began = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
        facts = {
            "MLflow's copy, from the run begun": f"{began:%Y-%m-%d %H:%M} UTC",
            "commit of the code": running_commit(),
            f"{self.key} has md5": md5,
        }
        for page in pages:
            copied = standalone(page, top, lambda path: report_address(self.layout, path), facts)
            mlflow.log_text(copied, f"reports/{page.relative_to(top).as_posix()}")


class Recorder(dg.ConfigurableResource):
    """Opens records; every asset takes this resource."""

    mlflow: MlflowTracking
    dvc: DvcRepo

    @contextmanager
    def open(
        self, context: dg.AssetExecutionContext, declaration: "Declaration", trainer: TrainingProcess
    ) -> Iterator[Record]:
        """Open the record of one materialisation of a declared asset.

        Raises ValueError if params.yaml, the code or external files have changed since the graph was loaded: the record
        must say what was used.
        """
        import mlflow

        key = declaration.key
        layout = Layout(project_root())
        with self.dvc.hold(key):
            params = read_params(layout.root / "params.yaml")
            before = self.dvc.snapshot(key)
            refuse_shortage(layout, params, key, studio_address(layout))
            loaded_with = context.assets_def.code_versions_by_key[context.asset_key]
            # read again: the snapshot must have the params that the asset is given
            now = read_params(layout.root / "params.yaml")
            if any(loaded_with != declaration.code_version(found, layout) for found in (params, now)):
                raise ValueError(
                    f"{key}: params.yaml or the code changed after this graph was loaded; start the command again, or "
                    "reload the definitions on Dagster's page. Finished work is kept"
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
