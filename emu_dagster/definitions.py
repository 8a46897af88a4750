"""What Dagster loads: every asset, check, job, schedule and sensor in the folder defs/, and the resources."""

import dagster as dg

from emu_dagster.declarations.assets import as_asset
from emu_dagster.declarations.declared import DECLARATIONS
from emu_dagster.declarations.loading import load_modules
from emu_dagster.machine.environment import prepare_environment
from emu_dagster.resources.dvc import DvcRepo
from emu_dagster.resources.gpu import TrainingProcess
from emu_dagster.resources.mlflow import MlflowTracking
from emu_dagster.resources.recorder import Recorder
from emu_steps.layout import Layout, project_root
from emu_steps.params import read_params

prepare_environment()  # before an asset imports a library that would wait for a network

layout = Layout(project_root())
params = read_params(layout.root / "params.yaml")
modules = load_modules()  # fills DECLARATIONS

defs = dg.Definitions.merge(
    *(module.defs for module in modules if hasattr(module, "defs")),  # jobs, checks, schedules, sensors
    dg.Definitions(
        assets=[as_asset(declaration, params, layout) for declaration in DECLARATIONS.values()],
        resources={
            "recorder": Recorder(mlflow=MlflowTracking(), dvc=DvcRepo()),
            "trainer": TrainingProcess(
                launcher=params.launch.command,
                strategy=params.launch.strategy,
                grace_seconds=params.launch.grace_seconds,
                retries=params.launch.retries,
            ),
        },
    ),
)
