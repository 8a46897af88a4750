"""What an asset reads, declared once: `@declared(...)` over a function that takes a `Record`.

From the declaration come Dagster's deps and code version, the stage in dvc.yaml, MLflow's params and inputs, and what
the function is given: it cannot read anything else.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from emu_dagster.closures import hash_code
from emu_dagster.digests import digest_of
from emu_dagster.given import values_of
from emu_dagster.layout import OUTS, Layout, project_root
from emu_dagster.params import Params, read_params
from emu_dagster.recording import Record, Recorder
from emu_dagster.resources.gpu import TrainingProcess
from emu_data.files import fingerprint

OWNERS = ["team:emu"]


@dataclass(frozen=True)
class Declaration:
    """reads: the assets whose data it reads. params: dotted parts of params.yaml that decide its result. how: parts
    that it is given and that change no result: a change of these makes nothing stale. files: dotted params that name a
    file or folder whose bytes it reads, where they are set; one that is an asset's output makes that asset a read.
    """

    key: str
    function: Callable[[Record], dg.MaterializeResult]
    reads: tuple[str, ...]
    params: tuple[str, ...]
    how: tuple[str, ...]
    files: tuple[str, ...]

    def inputs(self, params: Params, layout: Layout) -> list[str]:
        """The assets that it reads under these params."""
        makers = makers_of_outs(layout)
        named = [makers[path] for path in self._paths(params, layout) if path in makers]
        return list(dict.fromkeys([*named, *self.reads]))

    def brought(self, params: Params, layout: Layout) -> list[Path]:
        """Files and folders that it reads and no asset makes. What is not on this disk is taken for the name of
        weights that a library knows."""
        makers = makers_of_outs(layout)
        return [path for path in self._paths(params, layout) if path not in makers and path.exists()]

    def code_version(self, params: Params, layout: Layout) -> str:
        """16 digits of what, besides its inputs, decides the result: code, params, files that were brought along."""
        brought = [digest_of(path, layout) for path in self.brought(params, layout)]
        return fingerprint([hash_code(self.function), values_of(params, self.params), brought])

    def _paths(self, params: Params, layout: Layout) -> list[Path]:
        given = values_of(params, self.files).values()
        names = [name for value in given for name in (value if isinstance(value, list) else [value]) if name]
        return [layout.root / name for name in names]


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
            with recorder.open(context, declaration, trainer) as record:
                return function(record)

        return materialise

    return make


def makers_of_outs(layout: Layout) -> dict[Path, str]:
    """Path of an output -> the asset that makes it."""
    return {path: key for key in OUTS for path in layout.outs(key)}


def render_stages(declarations: Iterable[Declaration], params: Params, layout: Layout) -> str:
    """The text of dvc.yaml: a stage an asset, with what its declaration reads."""
    lines = [
        "# Written by emu from the declarations in emu_dagster/defs and the paths in params.yaml (`make dvc`).",
        "# One stage for each durable artifact: stage = asset key = MLflow data set. Dagster executes and DVC records;",
        "# `dvc repro` executes through the same assets. persist: DVC must not delete what an asset is about to resume.",
        "stages:",
    ]
    order = list(OUTS)
    for declaration in sorted(declarations, key=lambda declaration: order.index(declaration.key)):
        outs = [path.relative_to(layout.root).as_posix() for path in layout.outs(declaration.key)]
        read = [path for asset in declaration.inputs(params, layout) for path in layout.outs(asset)]
        deps = [_shown(path, layout) for path in [*read, *declaration.brought(params, layout)]]
        lines += [f"  {declaration.key}:", f"    cmd: emu materialize {declaration.key}"]
        lines += _listed("params", [name for name in declaration.params if _is_set(params, name)])
        lines += _listed("deps", deps)
        lines += ["    outs:", *(f"      - {out}: {{persist: true}}" for out in outs)]
    return "\n".join(lines) + "\n"


def _listed(name: str, items: Sequence[str]) -> list[str]:
    return [f"    {name}:", *(f"      - {item}" for item in items)] if items else []


def _shown(path: Path, layout: Layout) -> str:
    return path.relative_to(layout.root).as_posix() if path.is_relative_to(layout.root) else path.as_posix()


def _is_set(params: Params, name: str) -> bool:
    """Whether params.yaml itself has the entry: DVC knows no defaults, and ends where one is missing."""
    value: Any = params
    for part in name.split("."):
        if part not in value.model_fields_set:
            return False
        value = getattr(value, part)
    return True
