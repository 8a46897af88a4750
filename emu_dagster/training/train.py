"""The asset's part of a training: it starts the child process (child.py) and publishes the result."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_dagster.declarations.closures import hash_module
from emu_steps.training_jobs import publish

if TYPE_CHECKING:
    from emu_dagster.resources.recorder import Record
    from emu_models.latent.jobs import DenoiserJob
    from emu_models.training.jobs import Job


def train(record: "Record", jobs: Sequence["Job"]) -> list[Any]:
    """Train the jobs in a child process, publish their results together as the asset's model, and return what each job
    reported, in order. A job that was already trained is not trained again.
    """
    results = run_jobs(record, jobs)
    publish(record.layout, record.key, results)
    return results


def run_jobs(record: "Record", jobs: Sequence["Job"]) -> list[Any]:
    """Train the jobs in a child process, publish nothing, and return what each job reported, in order."""
    from emu_models.training.jobs import to_json

    given = {"jobs": [to_json(replace(job, code=hash_module(type(job).__module__))) for job in jobs]}
    return record.trainer.train(record.context, "emu_dagster.training.child", given, record.mlflow_environment)


def train_on_all_rows(record: "Record", job: "DenoiserJob") -> "DenoiserJob":
    """Train a job that stops early, and return one that learns all rows, from the same start, for as many steps."""
    (found,) = run_jobs(record, [replace(job, name=f"{job.name}_search")])
    loop = replace(job.loop, stop_after=found["num_steps"], max_rise=0.0)
    return replace(job, loop=loop, hold_out=False, stop_found_in=Path(found["folder"]))
