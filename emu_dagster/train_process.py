"""The child process in which every training runs: `python -m emu_dagster.train_process`, started by an asset.

It gets its jobs through Dagster Pipes as plain values, logs to the MLflow run of the asset that started it, and on an
interrupt saves and leaves with the code STOPPED; started again, it goes on from there. Where a launcher starts several
of it (resources/gpu.py), they train as one, and only the one of rank 0 reports.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_pipes import PipesDefaultContextLoader, PipesEnvVarParamsLoader, open_dagster_pipes

from emu_dagster.environment import collect_rarely
from emu_dagster.stopping import STOPPED, save_on_signal

if TYPE_CHECKING:
    from PIL.Image import Image

    from emu_models.training.distributed import World


def mlflow_sink(prefix: str) -> Callable[[int, dict[str, float]], None]:
    """Logs metrics as PREFIX/name to the run in MLFLOW_RUN_ID; nowhere where there is none."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return lambda step, metrics: None
    import time

    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])

    def sink(step: int, metrics: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        values = [Metric(f"{prefix}/{name}", value, now, step) for name, value in metrics.items()]
        client.log_batch(run_id, metrics=values)

    return sink


def mlflow_picture_sink(prefix: str) -> Callable[[int, "Image"], None]:
    """Logs a sheet of samples of a step to the run in MLFLOW_RUN_ID; nowhere where there is none."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return lambda step, sheet: None
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    return lambda step, sheet: client.log_image(run_id, sheet, key=f"{prefix}_samples", step=step, synchronous=True)


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


def run_job(given: dict[str, Any], stop_requested: Callable[[], bool], world: "World") -> dict[str, Any]:
    """Trains one job, or finds it trained, and returns what came of it, as plain values: `folder` holds its result,
    `out` is where that is to be published; `timings` are there where it trained now."""
    if given["kind"] == "alignment":  # small: one process trains it and the others wait
        result = train_alignment_models(given) if world.leads else {}
        world.wait()
        return result
    from dataclasses import asdict

    from emu_models.autoencoder.losses import AutoencoderLossConfig
    from emu_models.autoencoder.perceptual import PerceptualConfig
    from emu_models.checkpoints import Adapters
    from emu_models.denoiser import DenoiserConfig
    from emu_models.training import stages
    from emu_models.training.autoencoder_learner import AutoencoderTrainingConfig
    from emu_models.training.denoiser_learner import DenoiserTrainingConfig
    from emu_models.training.loop import LoopConfig

    spec = dict(given["spec"])
    paths = {name: Path(given[name]) for name in ("shards", "rows", "out", "states", "cache")}
    job = stages.Job(
        name=given["name"],
        resolution=given["resolution"],
        loop=LoopConfig(**given["loop"]),
        code=given.get("code", ""),
        sink=mlflow_sink(given["name"]) if world.leads else lambda step, metrics: None,
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
        result = stages.train_autoencoder(
            job, stages.AutoencoderJob(network, start_from, AutoencoderTrainingConfig(**training))
        )
    else:
        denoiser = spec.pop("denoiser", None)
        autoencoder = spec.pop("autoencoder", None)
        result = stages.train_denoiser(
            job,
            stages.DenoiserJob(
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
