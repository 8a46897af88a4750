"""Dagster's assets, made from the declarations."""

import inspect

import dagster as dg

from emu_dagster.declarations.declared import DECLARATIONS, Declaration
from emu_dagster.declarations.dvc_yaml import write_stages
from emu_dagster.resources.gpu import TrainingProcess
from emu_dagster.resources.recorder import Recorder
from emu_steps.layout import Layout
from emu_steps.params import Params

OWNERS = ["team:emu"]


def as_asset(declaration: Declaration, params: Params, layout: Layout) -> dg.AssetsDefinition:
    """Return the Dagster asset of a declaration under these params. All declarations must already be loaded."""

    @dg.asset(
        key=declaration.key,
        group_name=declaration.group,
        kinds=set(declaration.kinds),
        owners=OWNERS,
        deps=declaration.inputs(params, layout),
        code_version=declaration.code_version(params, layout),
        description=inspect.getdoc(declaration.function),
        pool=declaration.pool,
    )
    def materialise(
        context: dg.AssetExecutionContext, recorder: Recorder, trainer: TrainingProcess
    ) -> dg.MaterializeResult:
        write_stages(DECLARATIONS)
        with recorder.open(context, declaration, trainer) as record:
            return declaration.function(record)

    return materialise
