"""The asset's part of a training: it starts the child process (child.py) and publishes the result."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from emu_dagster.declarations.closures import hash_module
from emu_steps.training_jobs import publish

if TYPE_CHECKING:
    from emu_dagster.resources.recorder import Record
    from emu_models.training.jobs import Job


def train(record: "Record", jobs: Sequence["Job"]) -> list[Any]:
    """Train the jobs in a child process, publish their results together as the asset's model, and return what each job
    reported, in order. A job that was already trained is not trained again.
    """
    from emu_models.training.jobs import to_json

    given = {"jobs": [to_json(replace(job, code=hash_module(type(job).__module__))) for job in jobs]}
    results = record.trainer.train(record.context, "emu_dagster.training.child", given, record.mlflow_environment)
    publish(record.layout, record.key, results)
    return results
