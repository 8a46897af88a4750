"""Where everything lies below the project's root (design: data on disk)."""

import os
from dataclasses import dataclass
from pathlib import Path


def project_root() -> Path:
    """The folder of params.yaml, dvc.yaml and data/: the variable EMU_ROOT, else the current folder."""
    return Path(os.environ.get("EMU_ROOT") or Path.cwd()).resolve()


@dataclass(frozen=True)
class Layout:
    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def raw(self) -> Path:
        return self.data / "raw"

    @property
    def damage(self) -> Path:
        return self.data / "damage.parquet"

    @property
    def signals(self) -> Path:
        return self.data / "signals"

    @property
    def ledger(self) -> Path:
        return self.data / "ledger"

    @property
    def filtered(self) -> Path:
        return self.data / "filtered"

    @property
    def generalist(self) -> Path:
        return self.data / "curation" / "generalist_selection"

    @property
    def curated(self) -> Path:
        return self.data / "curated"

    @property
    def evaluation(self) -> Path:
        return self.data / "evaluation_images"

    @property
    def cache(self) -> Path:
        """Downloads, encoded rows, states of unfinished trainings: can be deleted, is not versioned."""
        return self.data / "cache"

    @property
    def index(self) -> Path:
        return self.data / "reports" / "index.html"

    def model(self, name: str) -> Path:
        return self.data / "models" / name

    def report(self, name: str) -> Path:
        return self.data / "reports" / name

    @property
    def registered(self) -> Path:
        return self.data / "registered_model.json"

    def outs(self, asset: str) -> list[Path]:
        """What an asset writes; the outs of its stage in dvc.yaml, in the same order."""
        match asset:
            case "raw_corpus":
                return [self.raw, self.damage]
            case "filter_ledger":
                return [self.signals, self.ledger]
            case "filtered_corpus":
                return [self.filtered, self.report(asset)]
            case "generalist_selection":
                return [self.generalist]
            case "curated_set":
                return [self.curated]
            case "autoencoder_study":
                return [self.model(asset), self.report(asset)]
            case "evaluation_images":
                return [self.evaluation]
            case "automatic_report" | "appeal_report" | "faithfulness_report":
                return [self.report(asset)]
            case "registered_model":
                return [self.registered]
        return [self.model(asset)]
