"""Where everything lies below the project's root (design: data on disk)."""

import os
from dataclasses import dataclass
from pathlib import Path


def _round_files(name: str) -> tuple[str, ...]:
    """A round's export, and its log with the head. Files and not the folder: what else lies there (a lock, a piece that
    an interrupted append left) is no data."""
    return tuple(f"data/votes/{name}/{file}" for file in ("votes.parquet", "votes.jsonl", "votes.jsonl.head.json"))


# What each asset writes, from the project's root: the outs of its stage in dvc.yaml, in this order.
OUTS: dict[str, tuple[str, ...]] = {
    "raw_corpus": ("data/raw", "data/damage.parquet"),
    "alignment_model": ("data/models/alignment_model",),
    "filter_ledger": ("data/signals", "data/ledger"),
    "filtered_corpus": ("data/filtered", "data/reports/filtered_corpus"),
    "faithfulness_judge": ("data/models/faithfulness_judge",),
    "generalist_votes": _round_files("generalist"),
    "generalist_selection": ("data/curation/generalist_selection",),
    "specialist_votes": _round_files("specialist"),
    "curated_set": ("data/curated",),
    "autoencoder_study": ("data/models/autoencoder_study", "data/reports/autoencoder_study"),
    "autoencoder": ("data/models/autoencoder",),
    "pretrained_low": ("data/models/pretrained_low",),
    "pretrained_mid": ("data/models/pretrained_mid",),
    "pretrained_full": ("data/models/pretrained_full",),
    "quality_tuned": ("data/models/quality_tuned",),
    "evaluation_images": ("data/evaluation_images",),
    "automatic_report": ("data/reports/automatic_report",),
    "appeal_votes": _round_files("appeal"),
    "appeal_report": ("data/reports/appeal_report",),
    "faithfulness_votes": _round_files("faithfulness"),
    "faithfulness_report": ("data/reports/faithfulness_report",),
    "registered_model": ("data/registered_model.json",),
    "front_page": ("data/reports/index.html", "data/reports/front_page", "data/reports/training"),
}


def project_root() -> Path:
    """The folder of params.yaml, dvc.yaml and data/: the variable EMU_ROOT, else the current folder."""
    return Path(os.environ.get("EMU_ROOT") or Path.cwd()).resolve()


class UndeclaredRead(Exception):
    """An asset read what its declaration does not name (see emu_dagster.given)."""


@dataclass(frozen=True)
class Layout:
    """root: the project. readable: the assets whose data may be looked up, None for all."""

    root: Path
    readable: frozenset[str] | None = None

    def outs(self, asset: str) -> list[Path]:
        """What an asset writes."""
        return [self.root / out for out in OUTS[asset]]

    def makers(self) -> dict[Path, str]:
        """Path of an output -> the asset that makes it."""
        return {path: key for key in OUTS for path in self.outs(key)}

    def read_outs(self, asset: str) -> list[Path]:
        """What others read of it. Of a round the export alone, which names the head up to which its log is read: the
        log itself grows at any time, and what was made of its beginning stays true."""
        outs = self.outs(asset)
        return [out for out in outs if out.suffix == ".parquet"] if asset.endswith("_votes") else outs

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
