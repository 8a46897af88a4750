"""What Dagster loads: every asset, check, job, schedule and sensor of defs/, and the resources."""

import dagster as dg

from emu_dagster.defs import (
    autoencoder,
    automation,
    checks,
    corpus,
    curation,
    evaluation,
    judge,
    pretraining,
    quality_tuning,
    registry,
)
from emu_dagster.environment import prepare_environment
from emu_dagster.recording import Recorder
from emu_dagster.resources.dvc import DvcRecord
from emu_dagster.resources.gpu import TrainingProcess
from emu_dagster.resources.mlflow import MlflowTracking
from emu_steps.layout import project_root
from emu_steps.params import read_params

prepare_environment()  # before any library that would wait for a network is imported by an asset

launch = read_params(project_root() / "params.yaml").launch
ASSET_MODULES = [corpus, curation, autoencoder, pretraining, quality_tuning, judge, evaluation, registry]

defs = dg.Definitions(
    assets=dg.load_assets_from_modules(ASSET_MODULES),
    asset_checks=dg.load_asset_checks_from_modules([checks]),
    jobs=[
        automation.whole_graph,
        automation.data_half,
        automation.model_half,
        automation.filter_shards,
        automation.evaluation,
    ],
    schedules=[automation.weekly_evaluation],
    sensors=[automation.new_raw_shards, automation.new_votes],
    resources={
        "recorder": Recorder(mlflow=MlflowTracking(), dvc=DvcRecord()),
        "trainer": TrainingProcess(launcher=launch.command, strategy=launch.strategy),
    },
)
