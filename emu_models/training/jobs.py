"""What a training is asked to do, as frozen dataclasses that JSON carries. Light: an asset makes a job without torch.

Beside each field of a job or of a config within it stands how it counts in the training's identity (identity.py); a
field beside which nothing stands is a WHAT, so that a new knob is declared by being there. A job is a kind of training:
its class names the kind, its module is the code that decides the result, `run` trains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from emu_models.training.running import Running

WHAT = "what"  # the value decides the result
HOW = "how"  # changes no result beyond rounding, or only the preview
STOPPING = "stopping"  # decides the result where the loop may stop early (max_rise above 0), else how
WEIGHTS = "weights"  # a path; what lies there decides
ENCODERS = "encoders"  # text encoders, which may be names on a hub: what `LoopJob.text_encoders` lists decides
ROWS = "rows"  # keys, captions and digests of the pictures decide, wherever they lie
CODE = "code"  # names the code, which decides, but is nothing that params say
COUNTS = (WHAT, HOW, STOPPING, WEIGHTS, ENCODERS, ROWS, CODE)


@dataclass(frozen=True)
class LoopConfig:
    """num_steps and the cadences are in optimiser steps; checkpoint_seconds is wall time between two saved states.

    learning_rate: of the peak. warmup_steps: over which it rises from 0. ema_decay: 0..1, a step. max_rise: share by
    which the held-out loss may rise above its best before the training stops; 0 never stops early. sample_every: steps
    between two sheets of sample pictures, 0 for none.
    """

    num_steps: int  # the cosine's length
    learning_rate: float
    warmup_steps: int
    ema_decay: float
    validate_every: Annotated[int, STOPPING]
    max_rise: float
    checkpoint_seconds: Annotated[float, HOW]
    seed: int
    sample_every: Annotated[int, HOW] = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every training needs.

    rows: a parquet with columns key and caption; shards: the folder of WebDataset shards that holds their pictures.
    states: the folder in which each training has one of its own, named by its identity. out: where the result is going
    to be published, to which the paths in its meta.json are relative; nothing is written there. code: what names the
    code that trains, so that a result of other code is not taken for this one's.
    """

    name: str
    shards: Annotated[Path, ROWS]
    rows: Annotated[Path, ROWS]
    out: Annotated[Path, HOW]
    states: Annotated[Path, HOW]
    code: Annotated[str, CODE] = ""

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole training."""
        raise NotImplementedError

    def run(self, running: "Running") -> dict[str, Any]:
        """Trains, or finds it trained, and returns what came of it as plain values (`reported`)."""
        raise NotImplementedError

    def reported(self, folder: Path, **numbers: Any) -> dict[str, Any]:
        """What the asset hears: `folder` holds the training's result/, which is to be published in `out`."""
        return {"name": self.name, "folder": str(folder), "out": str(self.out), **numbers}


@dataclass(frozen=True, kw_only=True)
class LoopJob(Job):
    """A training by `loop.run_training`. resolution: px. cache: the folder of encoded rows, which may go."""

    resolution: int
    cache: Annotated[Path, HOW]
    loop: LoopConfig

    @property
    def num_steps(self) -> int:
        return self.loop.num_steps

    def text_encoders(self) -> list[str]:
        """The text encoders that it loads, each a folder or a name on a hub."""
        return []


def run_alone(train: Callable[[], dict[str, Any]], running: "Running") -> dict[str, Any]:
    """A training that one process does while the others wait: what it reports, there, and {} elsewhere."""
    told = train() if running.world.leads else {}
    running.world.wait()
    return told


def to_json(job: Job) -> dict[str, Any]:
    """A job as JSON carries it."""
    kind = f"{type(job).__module__}:{type(job).__qualname__}"
    return {"kind": kind, "job": _adapter(type(job)).dump_python(job, mode="json")}


def from_json(given: dict[str, Any]) -> Job:
    """The job that `to_json` wrote."""
    return make(resolve_name(given["kind"]), given["job"])


def make(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass (and those within it) of the values that have its fields' names; others are left alone.

    ValueError names each value that is missing or does not fit.
    """
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise ValueError(f"{values.get('name', kind.__name__)}: {'; '.join(wrong)}") from None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
