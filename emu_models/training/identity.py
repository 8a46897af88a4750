"""Which training is which: what decides its result names it, and how it is done does not.

A training that is asked for again under another *how* (sheets, micro-batches, another cadence of saving) goes on from
its state; one of another *what* has a folder of its own beside, so that nothing takes the place of something else:

    STATES/IDENTITY/identity.json     the settings and the contents that the name is the hash of; written at every start
    STATES/IDENTITY/state/            what it goes on from (state.py)
    STATES/IDENTITY/metrics.jsonl     a line per point of its curves
    STATES/IDENTITY/result/           the finished model; there only when whole
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_type_hints

from emu_data.files import file_sha256, fingerprint, restore_dir, write_json
from emu_models.text import load_text_encoders
from emu_models.training.jobs import COUNTS, STOPPING, WEIGHTS, WHAT, LoopJob
from emu_models.training.loop import TrainingResult

# Of a folder of weights, what says nothing of the network: notes, logs, and code that is never run from there.
NOT_WEIGHTS = {"README.md", "preview.png", "metrics.jsonl", "meta.json"}
NOT_SETTINGS = {"_name_or_path"}  # of a config.json: where it was loaded from


@dataclass(frozen=True)
class Identity:
    """settings: the values that decide, as they are in params. contents: dotted name -> digest of what lies there."""

    settings: Mapping[str, Any]
    contents: Mapping[str, str]

    @cached_property
    def name(self) -> str:
        return fingerprint([dict(self.settings), dict(self.contents)])


def identify(job: LoopJob, rows: Iterable[Iterable[str]]) -> Identity:
    """The identity of a training. rows: of each row what decides, its key, its picture's digest, perhaps its caption.

    ValueError where weights that it starts from are not there.
    """
    contents = {name: hash_weights_at(path) for name, path in weights_of(job).items()}
    contents |= {f"text_encoder.{i}": _hash_text_encoder(name) for i, name in enumerate(job.text_encoders())}
    contents |= {"rows": hash_rows(rows), "code": job.code}
    return Identity(settings_of(job), contents)


def settings_of(job: LoopJob) -> dict[str, Any]:
    """The values that decide, as JSON has them: what can be said without looking at rows and weights. `spec`: those
    that only this kind of training has."""
    plain = _deciding(job, stops_early=job.loop.max_rise > 0)
    of_all = {name: value for name, value in plain.items() if name in counts_of(LoopJob)}
    spec = {name: value for name, value in plain.items() if name not in of_all}
    return json.loads(json.dumps({**of_all, "spec": spec}))


@cache
def counts_of(owner: type) -> dict[str, str]:
    """How each field of a job or of a config within it counts: what stands beside it, else WHAT (jobs.py)."""
    found = {}
    for name, hint in get_type_hints(owner, include_extras=True).items():
        beside = [note for note in getattr(hint, "__metadata__", ()) if note in COUNTS]
        found[name] = beside[0] if beside else WHAT
    return {field.name: found[field.name] for field in dataclasses.fields(owner)}


def _deciding(value: Any, stops_early: bool) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    counted = {WHAT, STOPPING} if stops_early else {WHAT}
    decides = [name for name, counts in counts_of(type(value)).items() if counts in counted]
    return {name: _deciding(getattr(value, name), stops_early) for name in decides}


def weights_of(value: Any, prefix: str = "") -> dict[str, Path]:
    """Dotted field -> path of the weights that a job and the configs within it name."""
    found: dict[str, Path] = {}
    for field, counts in counts_of(type(value)).items() if dataclasses.is_dataclass(value) else ():
        part, name = getattr(value, field), f"{prefix}{field}"
        if counts == WEIGHTS:
            if part is not None:
                found[name] = Path(part)
        else:
            found |= weights_of(part, f"{name}.")
    return found


def hash_weights_at(path: Path) -> str:
    """SHA-256, 32 digits, of a file, or of a folder's weights and settings, wherever it lies and was loaded from."""
    if path.is_file():
        return file_sha256(path)[:32]
    files = {f.relative_to(path).as_posix(): f for f in sorted(path.rglob("*")) if f.is_file()}
    kept = {n: f for n, f in files.items() if f.name not in NOT_WEIGHTS and f.suffix != ".py" and "/." not in f"/{n}"}
    if not kept:
        raise ValueError(f"{path} holds no weights to start from; materialise the asset that writes them, or name them")
    digest = hashlib.sha256()
    for name, file in kept.items():
        digest.update(f"{name}:{_hash_settings(file) if file.suffix == '.json' else file_sha256(file)}\n".encode())
    return digest.hexdigest()[:32]


def _hash_settings(file: Path) -> str:
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # not JSON after all
        return file_sha256(file)
    return fingerprint(_without_origin(loaded))


def _without_origin(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_origin(part) for name, part in value.items() if name not in NOT_SETTINGS}
    return [_without_origin(part) for part in value] if isinstance(value, list) else value


def _hash_text_encoder(name: str) -> str:
    if Path(name).is_dir():
        return hash_weights_at(Path(name))
    from emu_models.training.cache import hash_all, hash_weights

    encoders = load_text_encoders(name)
    return hash_all(hash_weights(encoders.models[0]), json.dumps(sorted(encoders.tokenizers[0].get_vocab().items())))


def hash_rows(rows: Iterable[Iterable[str]]) -> str:
    """SHA-256, 32 digits, over rows of texts, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(list(row)).encode() + b"\n")
    return digest.hexdigest()[:32]


def open_folder(states: Path, identity: Identity, leads: bool = True) -> Path:
    """The folder of a training, made where there is none; what a kill left half renamed in it is put back."""
    folder = states / identity.name
    if leads:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("state", "result"):
            restore_dir(folder / name)
        write_json(folder / "identity.json", identity)
    return folder


def read_result(folder: Path) -> TrainingResult | None:
    """What came of a finished training; None where it is not finished. It took no time now, so it has no timings."""
    meta = folder / "result" / "meta.json"
    if not meta.is_file():
        return None
    return TrainingResult(**json.loads(meta.read_text())["result"], timings={}, folder=folder)
