"""The child process in which every training runs: `python -m emu_dagster.train_process`, started by an asset.

It gets its jobs through Dagster Pipes as plain values, logs to the MLflow run of the asset that started it, and on an
interrupt saves and leaves with the code STOPPED; started again, it goes on from there. Where a launcher starts several
of it (resources/gpu.py), they train as one, and only the one of rank 0 reports.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_pipes import PipesContext, PipesDefaultContextLoader, PipesEnvVarParamsLoader, open_dagster_pipes

from emu_dagster.environment import collect_rarely
from emu_dagster.progress import Progress
from emu_dagster.resources.outbox import Outbox
from emu_dagster.stopping import STOPPED, save_on_signal

if TYPE_CHECKING:
    from PIL.Image import Image

    from emu_models.training.distributed import World


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
    latest: dict[str, float] = {}  # the held-out ones of the last validation among them

    def both(step: int, metrics: dict[str, float]) -> None:
        latest.update(metrics)
        sink(step, metrics)
        progress(step, num_steps, latest)

    return both


def train_alignment_models(given: dict[str, Any]) -> dict[str, Any]:
    """Trains the alignment models that are missing; a finished one is found again."""
    import pandas as pd

    from emu_data.shards import read_images
    from emu_models.alignment import AlignmentConfig, assign_folds, train_alignment

    table = pd.read_parquet(given["rows"])
    config = AlignmentConfig(**given["config"])
    images = read_images(Path(given["shards"]), table["key"].tolist(), config.image_size)
    folds = assign_folds(table["caption"].tolist(), table["group"].tolist(), config.num_folds)
    result = train_alignment(
        images,
        table["caption"].tolist(),
        table["key"].tolist(),
        folds,
        config,
        Path(given["states"]),
        given.get("code", ""),
    )
    return {
        "name": given["name"],
        "folder": str(result.folder),
        "out": given["out"],
        "num_images": len(table),
        **{f"loss_{name}": loss for name, loss in result.losses.items()},
    }


def train_judge(given: dict[str, Any]) -> dict[str, Any]:
    """Makes the judge of the faithfulness round and measures its error on known pairs."""
    import pandas as pd

    from emu_data.shards import read_images
    from emu_models.judge_training import JudgeConfig, make_judge

    table, shards = pd.read_parquet(given["rows"]), Path(given["shards"])
    folder, numbers = make_judge(
        lambda keys, size: read_images(shards, keys, size),
        table["caption"].tolist(),
        table["key"].tolist(),
        JudgeConfig(**given["config"]),
        Path(given["states"]),
        Path(given["root"]),
        given["code"],
    )
    return {"name": given["name"], "folder": str(folder), "out": given["out"], **numbers}


def run_job(given: dict[str, Any], stop_requested: Callable[[], bool], world: "World") -> dict[str, Any]:
    """Trains one job, or finds it trained, and returns what came of it, as plain values: `folder` holds its result,
    `out` is where that is to be published; `timings` are there where it trained now."""
    if given["kind"] in ("alignment", "judge"):  # small: one process trains it and the others wait
        make = train_alignment_models if given["kind"] == "alignment" else train_judge
        result = make(given) if world.leads else {}
        world.wait()
        return result
    from dataclasses import asdict

    from emu_models.latent import trainings
    from emu_models.latent.autoencoder.losses import AutoencoderLossConfig
    from emu_models.latent.autoencoder.perceptual import PerceptualConfig
    from emu_models.latent.autoencoder_learner import AutoencoderTrainingConfig
    from emu_models.latent.checkpoints import Adapters
    from emu_models.latent.denoiser import DenoiserConfig
    from emu_models.latent.denoiser_learner import DenoiserTrainingConfig
    from emu_models.training.loop import LoopConfig

    spec = dict(given["spec"])
    paths = {name: Path(given[name]) for name in ("shards", "rows", "out", "states", "cache")}
    job = trainings.Job(
        name=given["name"],
        resolution=given["resolution"],
        loop=LoopConfig(**given["loop"]),
        code=given.get("code", ""),
        sink=told_sink(given["name"], given["loop"]["num_steps"]) if world.leads else lambda step, metrics: None,
        picture_sink=mlflow_picture_sink(given["name"]) if world.leads else lambda step, sheet: None,
        stop_requested=stop_requested,
        world=world,
        **paths,
    )
    start_from = Path(spec.pop("start_from")) if spec.get("start_from") else None
    training = dict(spec.pop("training"))
    if given["kind"] == "autoencoder":
        losses = training["losses"]
        training["losses"] = AutoencoderLossConfig(**{**losses, "perceptual": PerceptualConfig(**losses["perceptual"])})
        network = spec.pop("network", None)
        result = trainings.train_autoencoder(
            job, trainings.AutoencoderJob(network, start_from, AutoencoderTrainingConfig(**training))
        )
    else:
        denoiser = spec.pop("denoiser", None)
        autoencoder = spec.pop("autoencoder", None)
        result = trainings.train_denoiser(
            job,
            trainings.DenoiserJob(
                autoencoder=Path(autoencoder) if autoencoder else None,
                start_from=start_from,
                denoiser=DenoiserConfig(**denoiser) if denoiser else None,
                text_encoder=spec["text_encoder"],
                num_text_tokens=spec["num_text_tokens"],
                training=DenoiserTrainingConfig(**training),
                prompts=tuple(spec["prompts"]),
                guidance_scale=spec["guidance_scale"],
                aspect_buckets=spec["aspect_buckets"],
                adapters=Adapters(**spec["adapters"]) if spec.get("adapters") else None,
            ),
        )
    told = {"name": job.name, "out": given["out"], **asdict(result), "folder": str(result.folder)}
    return told if result.timings else {name: value for name, value in told.items() if name != "timings"}


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
        from emu_models.training.loop import Interrupted

        try:
            with join_world(extras.get("strategy", "ddp")) as world:
                for job in extras["jobs"]:
                    report(run_job(job, lambda: stop.requested, world))
        except Interrupted as interrupted:
            print(interrupted, file=sys.stderr)
            return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
