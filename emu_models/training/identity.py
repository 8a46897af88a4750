"""Which training is which: what decides its result names it, and how it is done does not.

A training that is asked for again under another *how* (sheets, micro-batches, another cadence of saving) goes on from
its state; one of another *what* has a folder of its own beside, so that nothing takes the place of something else:

    STATES/IDENTITY/identity.json     the settings and the contents that the name is the hash of; written at every start
    STATES/IDENTITY/state/            what it goes on from (checkpoint.py)
    STATES/IDENTITY/metrics.jsonl     a line per point of its curves
    STATES/IDENTITY/result/           the finished model; there only when whole
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from emu_data.files import file_sha256, fingerprint, restore_dir, write_json
from emu_models.latent.autoencoder.losses import AutoencoderLossConfig
from emu_models.latent.autoencoder.perceptual import PerceptualConfig
from emu_models.latent.autoencoder_learner import AutoencoderTrainingConfig
from emu_models.latent.checkpoints import Adapters
from emu_models.latent.denoiser import DenoiserConfig
from emu_models.latent.denoiser_learner import DenoiserTrainingConfig
from emu_models.text import list_text_encoders, load_text_encoders
from emu_models.training.jobs import AutoencoderJob, DenoiserJob, Job
from emu_models.training.loop import LoopConfig, TrainingResult

WHAT = "what"  # the value decides the result
HOW = "how"  # changes no result beyond rounding, or only the preview
STOPPING = "stopping"  # decides the result where the loop may stop early (max_rise above 0), else how
WEIGHTS = "weights"  # a path or a name; what lies there decides
ROWS = "rows"  # keys, captions and digests of the pictures decide, wherever they lie
CODE = "code"  # names the code, which decides, but is nothing that params say

# Every field of everything that describes a training. One that is missing here stops every training.
DECLARED: dict[type, dict[str, str]] = {
    Job: {
        "name": WHAT,  # its meta.json says it
        "shards": ROWS,
        "rows": ROWS,
        "resolution": WHAT,
        "out": HOW,
        "states": HOW,
        "cache": HOW,
        "loop": WHAT,
        "code": CODE,
        "sink": HOW,
        "picture_sink": HOW,
        "stop_requested": HOW,
        "world": HOW,
    },
    LoopConfig: {
        "num_steps": WHAT,  # the cosine's length
        "learning_rate": WHAT,
        "warmup_steps": WHAT,
        "ema_decay": WHAT,
        "validate_every": STOPPING,
        "max_rise": WHAT,
        "checkpoint_seconds": HOW,
        "seed": WHAT,
        "sample_every": HOW,
    },
    AutoencoderJob: {"network": WHAT, "start_from": WEIGHTS, "training": WHAT},
    AutoencoderTrainingConfig: dict.fromkeys(("num_steps", "batch_size", "learning_rate", "losses", "seed"), WHAT),
    AutoencoderLossConfig: dict.fromkeys(("kl_weight", "adversarial_weight", "adversarial_start", "perceptual"), WHAT),
    PerceptualConfig: {"kind": WHAT, "path": WEIGHTS, "weight": WHAT},
    DenoiserJob: {
        "autoencoder": WEIGHTS,
        "start_from": WEIGHTS,
        "denoiser": WHAT,
        "text_encoder": WEIGHTS,
        "num_text_tokens": WHAT,
        "training": WHAT,
        "prompts": HOW,
        "guidance_scale": HOW,
        "aspect_buckets": WHAT,
        "adapters": WHAT,
    },
    DenoiserTrainingConfig: {
        "num_steps": WHAT,
        "batch_size": WHAT,
        "learning_rate": WHAT,
        "noise_offset": WHAT,
        "caption_dropout": WHAT,
        "seed": WHAT,
        "micro_batch_size": HOW,
        "gradient_checkpointing": HOW,
    },
    DenoiserConfig: dict.fromkeys(
        ("widths", "attention", "layers_per_level", "middle", "cross_attention_width", "head_width"), WHAT
    ),
    Adapters: dict.fromkeys(("rank", "alpha", "target_modules"), WHAT),
}

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


def identify(job: Job, spec: AutoencoderJob | DenoiserJob, rows: Iterable[Iterable[str]]) -> Identity:
    """The identity of a training. rows: of each row what decides, its key, its picture's digest, perhaps its caption.

    ValueError where weights that it starts from are not there.
    """
    contents = {name: hash_weights_at(path) for name, path in weights_of(spec).items()}
    if isinstance(spec, DenoiserJob) and spec.start_from is None:
        for i, name in enumerate(list_text_encoders(spec.text_encoder)):
            contents[f"text_encoder.{i}"] = _hash_text_encoder(name)
    contents |= {"rows": hash_rows(rows), "code": job.code}
    return Identity(settings_of(job, spec), contents)


def settings_of(job: Job, spec: AutoencoderJob | DenoiserJob) -> dict[str, Any]:
    """The values that decide, as JSON has them: what can be said without looking at rows and weights."""
    stops_early = job.loop.max_rise > 0
    plain = {**_deciding(job, stops_early), "spec": _deciding(spec, stops_early)}
    return json.loads(json.dumps(plain))


def kind_of(owner: type, field: str) -> str:
    """How a field counts, of DECLARED. ValueError where nobody has said it."""
    try:
        return DECLARED[owner][field]
    except KeyError:
        raise ValueError(f"{owner.__name__}.{field} is not declared in emu_models/training/identity.py") from None


def _deciding(value: Any, stops_early: bool) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    kinds = {field.name: kind_of(type(value), field.name) for field in dataclasses.fields(value)}
    counted = {WHAT, STOPPING} if stops_early else {WHAT}
    return {name: _deciding(getattr(value, name), stops_early) for name, kind in kinds.items() if kind in counted}


def weights_of(value: Any, prefix: str = "") -> dict[str, Path]:
    """Dotted field -> path of the weights that a job names; text encoders, which may be names on a hub, left out."""
    found: dict[str, Path] = {}
    for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
        part, name = getattr(value, field.name), f"{prefix}{field.name}"
        if kind_of(type(value), field.name) == WEIGHTS:
            if part is not None and field.name != "text_encoder":
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
