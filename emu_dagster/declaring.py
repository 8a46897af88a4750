"""What an asset reads, declared once: `@declared(...)` over a function that takes a `Record`.

From the declaration come Dagster's deps and code version, the stage in dvc.yaml, MLflow's params and inputs, and what
the function is given: it cannot read anything else.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from emu_dagster.closures import hash_code
from emu_dagster.digests import digest_of
from emu_dagster.dvc_yaml import write_stages
from emu_dagster.given import values_of
from emu_dagster.recording import Record, Recorder
from emu_dagster.resources.gpu import TrainingProcess
from emu_data.files import fingerprint
from emu_steps.layout import Layout, project_root
from emu_steps.params import REGISTERED, Params, read_params

OWNERS = ["team:emu"]


@dataclass(frozen=True)
class Declaration:
    """reads: the assets whose data it reads. params: dotted parts of params.yaml that decide its result. how: parts
    that it is given and that change no result: a change of these makes nothing stale. files: dotted params that name
    files or folders whose bytes it reads, or registered versions, where they are set: one, a list, or a mapping of
    them. One that is an asset's output makes that asset a read.
    """

    key: str
    function: Callable[[Record], dg.MaterializeResult]
    reads: tuple[str, ...]
    params: tuple[str, ...]
    how: tuple[str, ...]
    files: tuple[str, ...]

    def inputs(self, params: Params, layout: Layout) -> list[str]:
        """The assets that it reads under these params."""
        makers = layout.makers()
        named = [makers[path] for path in self._paths(params, layout) if path in makers]
        return list(dict.fromkeys([*named, *self.reads]))

    def brought(self, params: Params, layout: Layout) -> list[Path]:
        """Files and folders that it reads and no asset makes. What is not on this disk is taken for the name of
        weights that a library knows."""
        makers = layout.makers()
        return [path for path in self._paths(params, layout) if path not in makers and path.exists()]

    def code_version(self, params: Params, layout: Layout) -> str:
        """16 digits of what, besides its inputs, decides the result: code, params, files that were brought along,
        registered versions."""
        from emu_dagster.registering import digest_of_version

        brought = [digest_of(path, layout) for path in self.brought(params, layout)]
        brought += [digest_of_version(name) for name in self._named(params) if name.startswith(REGISTERED)]
        return fingerprint([hash_code(self.function), values_of(params, self.params), brought])

    def _paths(self, params: Params, layout: Layout) -> list[Path]:
        return [layout.root / name for name in self._named(params) if not name.startswith(REGISTERED)]

    def _named(self, params: Params) -> list[str]:
        found: list[str] = []
        for value in values_of(params, self.files).values():
            match value:
                case dict():
                    found += value.values()
                case list():
                    found += value
                case _:
                    found.append(value)
        return [name for name in found if name]


DECLARATIONS: dict[str, Declaration] = {}


def declared(
    *,
    group: str,
    kinds: set[str],
    reads: Sequence[str] = (),
    params: Sequence[str] = (),
    how: Sequence[str] = (),
    files: Sequence[str] = (),
    pool: str | None = None,
) -> Callable[[Callable[[Record], dg.MaterializeResult]], dg.AssetsDefinition]:
    """Makes a function over a Record the asset of its name. See Declaration for reads, params, how and files."""

    def make(function: Callable[[Record], dg.MaterializeResult]) -> dg.AssetsDefinition:
        key = function.__name__
        declaration = Declaration(key, function, tuple(reads), tuple(params), tuple(how), tuple(files))
        DECLARATIONS[key] = declaration
        layout = Layout(project_root())
        given = read_params(layout.root / "params.yaml")

        @dg.asset(
            key=key,
            group_name=group,
            kinds=kinds,
            owners=OWNERS,
            deps=declaration.inputs(given, layout),
            code_version=declaration.code_version(given, layout),
            description=inspect.getdoc(function),
            pool=pool,
        )
        def materialise(
            context: dg.AssetExecutionContext, recorder: Recorder, trainer: TrainingProcess
        ) -> dg.MaterializeResult:
            write_stages(DECLARATIONS.values())
            with recorder.open(context, declaration, trainer) as record:
                return function(record)

        return materialise

    return make
