"""The child process in which every training runs: `python -m emu_dagster.training.child`, started by an asset.

It gets its jobs through Dagster Pipes as JSON, runs them one after the other, logs to the MLflow run of the asset that
started it, and on an interrupt saves and leaves with the code STOPPED; started again, it goes on from there. Where a
launcher starts several of it (resources/gpu.py), they train as one, and only the one of rank 0 reports.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from dagster_pipes import PipesContext, PipesDefaultContextLoader, PipesEnvVarParamsLoader, open_dagster_pipes

from emu_dagster.machine.environment import collect_rarely
from emu_dagster.machine.stopping import STOPPED, save_on_signal
from emu_dagster.resources.outbox import Outbox
from emu_dagster.training.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from emu_models.training.distributed import World
    from emu_models.training.jobs import Job
    from emu_models.training.running import Running


def mlflow_sink(prefix: str) -> Callable[[int, dict[str, float]], None]:
    """Tells metrics as PREFIX/name to the run in MLFLOW_RUN_ID; nobody where there is none. Never raises or waits."""
    outbox = open_outbox()
    return (lambda step, metrics: outbox.put_metrics(prefix, step, metrics)) if outbox else lambda step, metrics: None


def mlflow_picture_sink(prefix: str) -> Callable[[int, "Image"], None]:
    """Tells a sheet of samples of a step to the run in MLFLOW_RUN_ID; nobody where there is none."""
    outbox = open_outbox()
    return (
        (lambda step, sheet: outbox.put_picture(f"{prefix}_samples", step, sheet))
        if outbox
        else lambda step, sheet: None
    )


@cache
def open_outbox() -> Outbox | None:
    run_id = os.environ.get("MLFLOW_RUN_ID")
    return Outbox(os.environ["MLFLOW_TRACKING_URI"], run_id) if run_id else None


def told_sink(name: str, num_steps: int) -> Callable[[int, dict[str, float]], None]:
    """`mlflow_sink`, and now and then a line with the numbers on the page of the asset's run in Dagster."""
    sink, progress = mlflow_sink(name), Progress(PipesContext.get().log.info, name, "step")

    def both(step: int, metrics: dict[str, float]) -> None:
        sink(step, metrics)
        progress(step, num_steps, metrics)

    return both


def listen(job: "Job", stop_requested: Callable[[], bool], world: "World") -> "Running":
    """The job's numbers and sheets go to MLflow and to the page of the asset's run, from the process that leads."""
    from emu_models.training.running import Running

    if not world.leads:
        return Running(stop_requested=stop_requested, world=world)
    return Running(told_sink(job.name, job.num_steps), mlflow_picture_sink(job.name), stop_requested, world)


@contextmanager
def read_extras() -> Iterator[tuple[dict[str, Any], Callable[[Any], None]]]:
    """What the asset handed in, and how to report to it: only the process of rank 0 does."""
    if os.environ.get("RANK", "0") == "0":
        with open_dagster_pipes() as pipes:
            yield dict(pipes.extras), pipes.report_custom_message
    else:
        given = PipesEnvVarParamsLoader().load_context_params()
        with PipesDefaultContextLoader().load_context(given) as data:
            yield dict(data["extras"] or {}), lambda message: None


def main() -> int:
    stop = save_on_signal()  # first, before the seconds that the imports take
    collect_rarely()
    with read_extras() as (extras, report):
        from emu_models.training.distributed import join_world
        from emu_models.training.jobs import from_json
        from emu_models.training.loop import Interrupted

        try:
            with join_world(extras.get("strategy", "ddp")) as world:
                for job in map(from_json, extras["jobs"]):
                    report(job.run(listen(job, lambda: stop.requested, world)))
        except Interrupted as interrupted:
            print(interrupted, file=sys.stderr)
            return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
