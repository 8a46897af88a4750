"""Where everything lies below the project's root (design: data on disk)."""

import os
from dataclasses import dataclass
from pathlib import Path


def project_root() -> Path:
    """The folder of params.yaml, dvc.yaml and data/: the variable EMU_ROOT, else the current folder."""
    return Path(os.environ.get("EMU_ROOT") or Path.cwd()).resolve()


class UndeclaredRead(Exception):
    """An asset read what its declaration does not name (see emu_dagster.declarations.given)."""


@dataclass(frozen=True)
class Layout:
    """root: the project. readable: the assets whose data may be looked up, None for all."""

    root: Path
    readable: frozenset[str] | None = None

    def _of(self, asset: str, path: str) -> Path:
        if self.readable is not None and asset not in self.readable:
            raise UndeclaredRead(f"{path} belongs to {asset}, which the declaration does not name; add it to `reads`")
        return self.root / path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def raw(self) -> Path:
        return self._of("raw_corpus", "data/raw")

    @property
    def damage(self) -> Path:
        return self._of("raw_corpus", "data/damage.parquet")

    @property
    def signals(self) -> Path:
        return self._of("filter_ledger", "data/signals")

    @property
    def ledger(self) -> Path:
        return self._of("filter_ledger", "data/ledger")

    @property
    def filtered(self) -> Path:
        return self._of("filtered_corpus", "data/filtered")

    @property
    def generalist(self) -> Path:
        return self._of("generalist_selection", "data/curation/generalist_selection")

    def votes(self, name: str) -> Path:
        """The folder of a round's log: generalist, specialist, appeal or faithfulness."""
        return self._of(f"{name}_votes", f"data/votes/{name}")

    @property
    def curated(self) -> Path:
        return self._of("curated_set", "data/curated")

    @property
    def evaluation(self) -> Path:
        return self._of("evaluation_images", "data/evaluation_images")

    @property
    def registered(self) -> Path:
        return self._of("registered_model", "data/registered_model.json")

    def model(self, name: str) -> Path:
        return self._of(name, f"data/models/{name}")

    def report(self, name: str) -> Path:
        return self._of(name, f"data/reports/{name}")

    @property
    def cache(self) -> Path:
        """Downloads and encoded rows: can be deleted, is not versioned."""
        return self.data / "cache"

    @property
    def states(self) -> Path:
        """States and results of trainings: removed by `emu prune` alone, not versioned."""
        return self.data / "states"

    @property
    def index(self) -> Path:
        return self.data / "reports" / "index.html"

    @property
    def training_report(self) -> Path:
        return self._of("front_page", "data/reports/training")
