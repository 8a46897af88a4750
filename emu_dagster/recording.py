"""What every asset does besides its work: params, inputs, the MLflow run, the DVC commit, the metadata.

An asset opens a record, works, and returns `record.result(...)`. The md5 that DVC gives its output is its data version
in Dagster and its digest in MLflow: the one key that all three hold.
"""

import hashlib
import inspect
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
from PIL import Image

import emu_dagster
from emu_dagster.layout import Layout, project_root
from emu_dagster.params import Params, Section, read_params
from emu_dagster.pictures import inline_image
from emu_dagster.resources.dvc import DvcRecord, Snapshot
from emu_dagster.resources.mlflow import MlflowTracking
from emu_dagster.training_jobs import training_states
from emu_data.files import fingerprint

OWNERS = ["team:emu"]


def facts(key: str, group: str, kinds: set[str], deps: list[str], code: list[str]) -> dict[str, Any]:
    """Arguments that every asset gives to `@dg.asset`.

    code: the packages and modules that determine its result. Their text and the asset's section of params.yaml make the
    code version, since Dagster's staleness does not look at config (dagster#13826).
    """
    caller = inspect.stack()[1].filename
    params = read_params(project_root() / "params.yaml")
    section = params.section(key)
    version = fingerprint([section, hash_code(tuple(code)), hashlib.sha256(Path(caller).read_bytes()).hexdigest()])
    return {
        "key": key,
        "group_name": group,
        "kinds": kinds,
        "owners": OWNERS,
        "deps": deps,
        "code_version": version,
    }


@cache
def hash_code(code: tuple[str, ...]) -> str:
    """SHA-256 over the .py files of packages ("emu_models/training") and modules ("emu_data/shards.py")."""
    top = Path(emu_dagster.__file__).parent.parent
    digest = hashlib.sha256()
    for name in code:
        files = sorted((top / name).rglob("*.py")) if (top / name).is_dir() else [top / name]
        assert files and all(f.is_file() for f in files), f"no code at {name}"
        for file in files:
            digest.update(file.relative_to(top).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


@dataclass
class Record:
    """An open materialisation: where to read and write, under which params, and what is to be told of it."""

    context: dg.AssetExecutionContext
    key: str
    layout: Layout
    params: Params
    dvc: DvcRecord
    before: Snapshot
    mlflow_environment: dict[str, str]
    run_id: str

    @property
    def section(self) -> Section:
        return getattr(self.params, self.key)

    @property
    def code_version(self) -> str:
        return self.context.assets_def.code_versions_by_key[self.context.asset_key] or ""

    def fresh_folder(self, out: Path) -> Path:
        """`out`, without what an earlier run of another kind left in it.

        Finished parts of a run of the same code version, params and inputs stay and are not trained again (the result
        would be the same). What belongs to another is removed, so that it cannot be taken for a result of this run.
        """
        identity = fingerprint([self.code_version, dict(self.before.params), dict(self.before.deps)])
        states = training_states(self.layout, self.key)
        mark = states / "identity"
        if not mark.is_file() or mark.read_text() != identity:
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(states, ignore_errors=True)
            states.mkdir(parents=True)
            mark.write_text(identity)
        return out

    def trained(self, result: Mapping[str, Any]) -> dg.MaterializeResult:
        """The result of an asset that trained one model: its last metrics, curve and preview."""
        folder = self.layout.model(self.key)
        meta = json.loads((folder / "meta.json").read_text())
        numbers = {
            **result["metrics"],
            "num_steps": result["num_steps"],
            "best_step": result["best_step"],
            **result.get("timings", {}),
            "num_parameters": meta["num_parameters"],
            "num_rows": meta["num_rows"],
        }
        pictures: dict[str, Path | Image.Image] = {"preview": folder / "preview.png"}
        return self.result(numbers, pictures=pictures)

    def result(
        self,
        metrics: Mapping[str, float],
        pictures: Mapping[str, Path | Image.Image] | None = None,
        pages: Mapping[str, Path] | None = None,
        tables: Mapping[str, str] | None = None,
        data_version: str | None = None,
    ) -> dg.MaterializeResult:
        """Commits the output to DVC and tells Dagster and MLflow of it.

        metrics: plain names; pictures: contact sheets, shown inline in Dagster and stored in MLflow; pages: reports on
        disk; tables: Markdown.
        """
        import mlflow

        md5 = self.dvc.record(self.key, self.before)
        numbers = {name: float(value) for name, value in metrics.items() if value == value}
        mlflow.log_metrics(numbers)
        mlflow.set_tag("emu.md5", md5)
        shown: dict[str, Any] = {"md5": md5, "mlflow_run": self.run_id, "profile": self.params.profile, **metrics}
        for name, picture in (pictures or {}).items():
            shown[name] = inline_image(picture)
            if isinstance(picture, Path):
                mlflow.log_artifact(str(picture))
            else:
                mlflow.log_image(picture, f"{name}.png")
        for name, page in (pages or {}).items():
            shown[name] = dg.MetadataValue.path(str(page.relative_to(self.layout.root)))
            mlflow.log_artifact(str(page), "report")
        for name, table in (tables or {}).items():
            shown[name] = dg.MetadataValue.md(table)
        return dg.MaterializeResult(metadata=shown, data_version=dg.DataVersion(data_version or md5))


class Recorder(dg.ConfigurableResource):
    """Opens records; the one resource that every asset takes."""

    mlflow: MlflowTracking
    dvc: DvcRecord

    @contextmanager
    def open(self, context: dg.AssetExecutionContext) -> Iterator[Record]:
        key = context.asset_key.to_user_string()
        layout = Layout(project_root())
        params = read_params(layout.root / "params.yaml")
        before = self.dvc.snapshot(key)
        inputs = {
            dep.to_user_string(): digest
            for dep in context.assets_def.asset_deps[context.asset_key]
            if (digest := self.dvc.digest_of(dep.to_user_string()))
        }
        with self.mlflow.run_for(context, params.section(key), inputs) as run:
            import mlflow

            mlflow.set_tags({"emu.profile": params.profile, "emu.toy": str(params.toy).lower()})
            yield Record(
                context,
                key,
                layout,
                params,
                self.dvc,
                before,
                self.mlflow.child_environment(run),
                run.info.run_id,
            )
