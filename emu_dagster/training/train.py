"""The asset's side of a training: its child process (child.py), and the publishing of what came of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from emu_dagster.declarations.closures import hash_module
from emu_steps.training_jobs import publish

if TYPE_CHECKING:
    from emu_dagster.resources.recorder import Record
    from emu_models.training.jobs import Job


def train(record: "Record", jobs: Sequence["Job"]) -> list[Any]:
    """Trains the jobs in a process of their own, publishes their results together as the asset's model, and returns
    what each reported, in their order. A job that was trained before is not trained again."""
    from emu_models.training.jobs import to_json

    given = {"jobs": [to_json(replace(job, code=hash_module(type(job).__module__))) for job in jobs]}
    results = record.trainer.train(record.context, "emu_dagster.training.child", given, record.mlflow_environment)
    publish(record.layout, record.key, results)
    return results
