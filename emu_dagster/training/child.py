"""The child process in which every training runs: `python -m emu_dagster.training.child`, started by an asset.

It gets its jobs through Dagster Pipes as JSON, runs them one after the other, and logs to the MLflow run of the asset
that started it. On an interrupt it saves and exits with code STOPPED; started again, it continues from there. If a
launcher starts several processes (resources/gpu.py), they train together, and only the one of rank 0 reports.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from dagster_pipes import PipesContext, PipesDefaultContextLoader, PipesEnvVarParamsLoader, open_dagster_pipes

from emu_dagster.machine.environment import collect_rarely
from emu_dagster.machine.stopping import STOPPED, StopRequest, leave_cause, save_on_signal
from emu_dagster.resources.outbox import Outbox
from emu_dagster.training.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from emu_models.training.distributed import World
    from emu_models.training.jobs import Job
    from emu_models.training.running import Running


def mlflow_sink(prefix: str) -> Callable[[int, dict[str, float]], None]:
    """Return a function that reports metrics as PREFIX/name to the run in MLFLOW_RUN_ID, or does nothing if it is not
    set. It never raises or waits.
    """
    outbox = open_outbox()
    return (lambda step, metrics: outbox.put_metrics(prefix, step, metrics)) if outbox else lambda step, metrics: None


def mlflow_picture_sink(prefix: str) -> Callable[[int, "Image"], None]:
    """Return a function that sends a step's sheet of samples to the run in MLFLOW_RUN_ID, or does nothing if it is not
    set.
    """
    outbox = open_outbox()
    return (
        (lambda step, sheet: outbox.put_picture(f"{prefix}_samples", step, sheet))
        if outbox
        else lambda step, sheet: None
    )


@cache
def open_outbox() -> Outbox | None:
    """Return this process's outbox to the run in MLFLOW_RUN_ID; None if the variable is not set."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    return Outbox(os.environ["MLFLOW_TRACKING_URI"], run_id) if run_id else None


def dagster_sink(name: str, num_steps: int) -> Callable[[int, dict[str, float]], None]:
    """Return a function like that of `mlflow_sink`, which every few seconds also writes a line with the numbers to the
    page of the asset's run in Dagster.
    """
    sink, progress = mlflow_sink(name), Progress(PipesContext.get().log.info, name, "step")

    def both(step: int, metrics: dict[str, float]) -> None:
        sink(step, metrics)
        progress(step, num_steps, metrics)

    return both


def listen(job: "Job", stop_requested: Callable[[], bool], world: "World") -> "Running":
    """Return the connection of a job to its reports: the process of rank 0 sends its numbers and sheets to MLflow and
    to the page of the asset's run.
    """
    from emu_models.training.running import Running

    if not world.leads:
        return Running(stop_requested=stop_requested, world=world)
    return Running(dagster_sink(job.name, job.num_steps), mlflow_picture_sink(job.name), stop_requested, world)


@contextmanager
def read_extras() -> Iterator[tuple[dict[str, Any], Callable[[Any], None]]]:
    """Yield what the asset passed in, and a function that reports back to it; it does something only in the process of
    rank 0.
    """
    if os.environ.get("RANK", "0") == "0":
        with open_dagster_pipes() as pipes:
            yield dict(pipes.extras), pipes.report_custom_message
    else:
        given = PipesEnvVarParamsLoader().load_context_params()
        with PipesDefaultContextLoader().load_context(given) as data:
            yield dict(data["extras"] or {}), lambda message: None


def main() -> int:
    """Run the jobs one after the other; return the exit code, 0 or STOPPED after an interrupt."""
    stop = save_on_signal()  # first, before the seconds that the imports take
    collect_rarely()
    with leave_cause():
        return _run(stop)


def _run(stop: StopRequest) -> int:
    with read_extras() as (extras, report):
        from emu_models.training.distributed import join_world
        from emu_models.training.jobs import from_json
        from emu_models.training.loop import Interrupted

        try:
            with join_world(extras.get("strategy", "ddp")) as world:
                jobs = map(from_json, extras["jobs"])
                results = [job.run(listen(job, lambda: stop.requested, world)) for job in jobs]
            for result in results:  # together: a launcher may have started us again after some jobs were done
                report(result)
        except Interrupted as interrupted:
            print(interrupted, file=sys.stderr)
            return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
