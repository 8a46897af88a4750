"""What a training should do, as frozen dataclasses that can be written as JSON. An asset can make a job without torch.

Fields of a job and of its configs may have a mark that says how they count in the training's identity (identity.py). A
field without a mark is a WHAT, so that a new setting counts without further work. A job is a kind of training: its
class names the kind, its module is the code that determines the result, and `run` trains.
"""

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from emu_models.training.loop import TrainingResult
    from emu_models.training.running import Running

WHAT = "what"  # the value determines the result
HOW = "how"  # changes the result at most by rounding, or only the preview
STOPPING = "stopping"  # a WHAT if the loop may stop early (max_rise above 0), otherwise a HOW
WEIGHTS = "weights"  # a path; the bytes there determine the result
CONTENTS = "contents"  # names of weights, possibly on a hub: the digests of `LoopJob.contents` determine the result
ROWS = "rows"  # the pictures' keys, captions and digests determine the result, wherever they are
CODE = "code"  # identifies the code, which determines the result but is not in params
COUNTS = (WHAT, HOW, STOPPING, WEIGHTS, CONTENTS, ROWS, CODE)

# In the schema of a parquet of rows: JSON, shard -> its digest (shards.shard_digest) when its rows were measured.
SHARD_MARKS = "emu.shards"


@dataclass(frozen=True)
class LoopConfig:
    """The settings of the training loop; intervals are in optimiser steps, except checkpoint_minutes, the wall time
    between two saved states.

    learning_rate: at its peak. warmup_steps: over which it rises from 0. ema_decay: 0..1, per step. max_rise: share by
    which the held-out loss may rise above its best before the training stops; 0 never stops early. sample_every: steps
    between two sheets of sample pictures, 0 for none. keep_states: the newest states that are kept. keep_every: the
    states after multiples of so many steps are saved and kept for good; 0 for none. stop_after: the last step, before
    num_steps, which is still the length of the learning rate's cosine; None for num_steps.
    """

    num_steps: int  # also the length of the learning rate's cosine
    learning_rate: float
    warmup_steps: int
    ema_decay: float
    validate_every: Annotated[int, STOPPING]
    max_rise: float
    checkpoint_minutes: Annotated[float, HOW]
    seed: int
    sample_every: Annotated[int, HOW] = 0
    keep_states: Annotated[int, HOW] = 1
    keep_every: Annotated[int, HOW] = 0
    stop_after: int | None = None

    @property
    def last_step(self) -> int:
        """The step after which the training ends, if it does not stop early."""
        return self.num_steps if self.stop_after is None else min(self.num_steps, self.stop_after)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every training needs.

    rows: a parquet with columns key and caption, and perhaps others (row_file.open_rows); shards: the folder of
    WebDataset shards with their pictures. states: the folder in which each training has its own, named by its identity.
    out: the folder in which the asset publishes the result; the training writes nothing there. code: identifies the
    code that trains, so that a result of other code is not used.
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
        """Train, unless that was done before, and return the result as plain values (`reported`)."""
        raise NotImplementedError

    def reported(self, folder: Path, **numbers: Any) -> dict[str, Any]:
        """Return what the asset receives. folder: holds the training's result/, which the asset publishes in `out`."""
        return {"name": self.name, "folder": str(folder), "out": str(self.out), **numbers}


@dataclass(frozen=True, kw_only=True)
class LoopJob(Job):
    """A training by `loop.run_training`. resolution: px. cache: the folder of encoded rows, which may be deleted."""

    resolution: int
    cache: Annotated[Path, HOW]
    loop: LoopConfig

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.loop.last_step

    def contents(self) -> dict[str, str]:
        """Return name -> digest of what the fields marked CONTENTS stand for, and of anything else that determines the
        result."""
        return {}

    def reported_result(self, result: "TrainingResult") -> dict[str, Any]:
        """Return the job's report; it has `timings` only if the training ran now."""
        numbers = {name: value for name, value in asdict(result).items() if name not in ("folder", "timings")}
        return self.reported(result.folder, **numbers, **({"timings": result.timings} if result.timings else {}))


@dataclass(frozen=True, kw_only=True)
class PipelineJob(LoopJob):
    """A training whose result is a pipeline that draws. prompts: of the sheets and of the preview. guidance_scale: with
    which they are drawn."""

    prompts: Annotated[tuple[str, ...], HOW]
    guidance_scale: Annotated[float, HOW]


def to_json(job: Job) -> dict[str, Any]:
    """Return a job as JSON values."""
    kind = f"{type(job).__module__}:{type(job).__qualname__}"
    return {"kind": kind, "job": _adapter(type(job)).dump_python(job, mode="json")}


def from_json(given: dict[str, Any]) -> Job:
    """Return the job that `to_json` wrote."""
    return make(resolve_name(given["kind"]), given["job"])


def make(kind: type, values: dict[str, Any]) -> Any:
    """Return a dataclass (and those in it) from the values named like its fields; other values are ignored.

    Raises ValueError, which names each value that is missing or does not fit.
    """
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise ValueError(f"{values.get('name', kind.__name__)}: {'; '.join(wrong)}") from None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
