"""The identity of a training: a hash of what determines its result, but not of how it is run.

If a training is requested again with another *how* (sheets, micro-batches, another interval of saving), it continues
from its state. With another *what* it gets its own folder, so that nothing is replaced:

    STATES/IDENTITY/identity.json     the settings and contents whose hash is the name; written at every start
    STATES/IDENTITY/states/           what the training continues from (state.py); for several networks a folder each
    STATES/IDENTITY/metrics.jsonl     a line per point of its curves
    STATES/IDENTITY/result/           the finished model; exists only when it is complete
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
from emu_models.training.jobs import COUNTS, STOPPING, WEIGHTS, WHAT, LoopJob
from emu_models.training.loop import TrainingResult

# Files in a folder of weights that do not affect the network: notes and logs. Code there is never run either.
NOT_WEIGHTS = {"README.md", "preview.png", "metrics.jsonl", "search.jsonl", "meta.json"}
NOT_SETTINGS = {"_name_or_path"}  # in a config.json: where it was loaded from


@dataclass(frozen=True)
class Identity:
    """What determines a training's result. settings: the values from params that do. contents: dotted name -> digest of
    the weights, rows or code that it stands for."""

    settings: Mapping[str, Any]
    contents: Mapping[str, str]

    @cached_property
    def name(self) -> str:
        """16 hexadecimal digits: the name of the training's folder."""
        return fingerprint([dict(self.settings), dict(self.contents)])


def identify(job: LoopJob, rows: Iterable[Iterable[str]] | str) -> Identity:
    """Return the identity of a training. rows: for each row what matters: its key, its picture's digest, perhaps its
    caption; or a hash of these, as a row file has it.

    Raises ValueError if weights that it starts from do not exist.
    """
    contents = {name: hash_weights_at(path) for name, path in weights_of(job).items()}
    hashed = rows if isinstance(rows, str) else hash_rows(rows)
    contents |= {**job.contents(), "rows": hashed, "code": job.code}
    return Identity(settings_of(job), contents)


def settings_of(job: LoopJob) -> dict[str, Any]:
    """Return the values of a job that determine its result, as JSON values; rows and weights are not read. `spec` holds
    those that only this kind of training has."""
    plain = _deciding(job, stops_early=job.loop.max_rise > 0)
    of_all = {name: value for name, value in plain.items() if name in counts_of(LoopJob)}
    spec = {name: value for name, value in plain.items() if name not in of_all}
    return json.loads(json.dumps({**of_all, "spec": spec}))


@cache
def counts_of(owner: type) -> dict[str, str]:
    """Return field -> how it counts, for a job or a config in it: its mark, or WHAT if it has none (jobs.py)."""
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
    """Return dotted field -> path, for the weights that a job and its configs name."""
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
    """Return 32 digits of a SHA-256 of a file, or of a folder's weights and settings, which does not depend on where
    they are or were loaded from. Raises ValueError if there are none."""
    if path.is_file():
        return file_sha256(path)[:32]
    files = {f.relative_to(path).as_posix(): f for f in sorted(path.rglob("*")) if f.is_file()}
    kept = {n: f for n, f in files.items() if f.name not in NOT_WEIGHTS and f.suffix != ".py" and "/." not in f"/{n}"}
    if not kept:
        raise ValueError(
            f"{path} holds no weights to start from; materialise the asset that writes them, or name another folder"
        )
    digest = hashlib.sha256()
    for name, file in kept.items():
        digest.update(f"{name}:{_hash_settings(file) if file.suffix == '.json' else file_sha256(file)}\n".encode())
    return digest.hexdigest()[:32]


def _hash_settings(file: Path) -> str:
    try:
        # -Infinity, which diffusers writes for DPM-Solver's lambda_min_clipped, is no JSON
        loaded = json.loads(file.read_text(encoding="utf-8"), parse_constant=str)
    except ValueError:  # not JSON after all
        return file_sha256(file)
    return fingerprint(_without_origin(loaded))


def _without_origin(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_origin(part) for name, part in value.items() if name not in NOT_SETTINGS}
    return [_without_origin(part) for part in value] if isinstance(value, list) else value


def hash_all(*parts: str | bytes) -> str:
    """Return 128 bits of a SHA-256 of the parts, as 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


def hash_rows(rows: Iterable[Iterable[str]]) -> str:
    """Return 32 digits of a SHA-256 of rows of texts, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(list(row)).encode() + b"\n")
    return digest.hexdigest()[:32]


def open_folder(states: Path, identity: Identity, leads: bool = True) -> Path:
    """Return the folder of a training, which is created if needed; renames that a kill interrupted are undone."""
    folder = states / identity.name
    if leads:
        folder.mkdir(parents=True, exist_ok=True)
        restore_dir(folder / "result")
        write_json(folder / "identity.json", identity)
    return folder


def read_result(folder: Path) -> TrainingResult | None:
    """Return the result of a finished training, without timings, since it took no time now; None if unfinished."""
    meta = folder / "result" / "meta.json"
    if not meta.is_file():
        return None
    return TrainingResult(**json.loads(meta.read_text())["result"], timings={}, folder=folder)
