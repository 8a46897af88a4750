"""Where everything is below the project's root (docs/architecture.md, data on disk)."""

import os
from dataclasses import dataclass
from pathlib import Path


def project_root() -> Path:
    """The folder of params.yaml, dvc.yaml and data/: the variable EMU_ROOT or, if it is not set, the current folder."""
    return Path(os.environ.get("EMU_ROOT") or Path.cwd()).resolve()


class UndeclaredRead(Exception):
    """An asset read something that its declaration does not name (see emu_dagster.declarations.given)."""


@dataclass(frozen=True)
class Layout:
    """Paths of the project in `root`. readable: the assets whose paths may be looked up, None for all.

    A path of another asset raises UndeclaredRead.
    """

    root: Path
    readable: frozenset[str] | None = None

    def _of(self, asset: str, path: str) -> Path:
        if self.readable is not None and asset not in self.readable:
            raise UndeclaredRead(f"{path} belongs to {asset}, which the declaration does not name; add it to `reads`")
        return self.root / path

    @property
    def data(self) -> Path:
        """Everything that the graph reads and writes."""
        return self.root / "data"

    @property
    def raw(self) -> Path:
        """The raw corpus, as img2dataset writes it: NNNNN.parquet with NNNNN.tar or NNNNN.ref."""
        return self._of("raw_corpus", "data/raw")

    @property
    def damage(self) -> Path:
        """A parquet of what the demo corpus damaged on purpose; empty for other corpora."""
        return self._of("raw_corpus", "data/damage.parquet")

    @property
    def signals(self) -> Path:
        """Measured values: SIGNAL@VERSION/NNNNN.parquet."""
        return self._of("filter_ledger", "data/signals")

    @property
    def ledger(self) -> Path:
        """A parquet per shard with a row per raw picture, decided by the gates that need only that row."""
        return self._of("filter_ledger", "data/ledger")

    @property
    def filtered(self) -> Path:
        """Shards of the pictures that passed every gate, their manifest, and the final ledger."""
        return self._of("filtered_corpus", "data/filtered")

    @property
    def generalist(self) -> Path:
        """The pictures that the generalists chose (selection.parquet)."""
        return self._of("generalist_selection", "data/curation/generalist_selection")

    def votes(self, name: str) -> Path:
        """The folder of a round's log, generalist, specialist, appeal or faithfulness, or of the written captions."""
        return self._of("written_captions" if name == "captions" else f"{name}_votes", f"data/votes/{name}")

    @property
    def curated(self) -> Path:
        """Shards of the curated set."""
        return self._of("curated_set", "data/curated")

    @property
    def evaluation(self) -> Path:
        """Prompts, and a PNG per prompt and contestant."""
        return self._of("evaluation_images", "data/evaluation_images")

    @property
    def registered(self) -> Path:
        """The last registered version: name, version, alias, verdicts and tags, as JSON."""
        return self._of("registered_model", "data/registered_model.json")

    def model(self, name: str) -> Path:
        """The folder of the model that the asset `name` publishes."""
        return self._of(name, f"data/models/{name}")

    def report(self, name: str) -> Path:
        """The folder of the report that the asset `name` writes."""
        return self._of(name, f"data/reports/{name}")

    @property
    def cache(self) -> Path:
        """Downloads and encoded rows: may be deleted at any time, not versioned."""
        return self.data / "cache"

    @property
    def states(self) -> Path:
        """States and results of trainings: removed only by `emu prune`, not versioned."""
        return self.data / "states"

    @property
    def index(self) -> Path:
        """The first page of all reports."""
        return self.data / "reports" / "index.html"

    @property
    def training_report(self) -> Path:
        """The folder of the report on all trainings, which front_page writes."""
        return self._of("front_page", "data/reports/training")
