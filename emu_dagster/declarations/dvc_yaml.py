"""dvc.yaml, written from the declarations: `python -m emu_dagster.declarations.dvc_yaml`, and by each materialisation.

There is one stage per durable artifact. Dagster executes and DVC records; `dvc repro` runs the same assets. `persist`
is set because DVC must not delete what an asset is about to resume.
"""

import os
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_data.files import atomic_file
from emu_steps.layout import Layout, project_root
from emu_steps.params import Params, read_params

if TYPE_CHECKING:
    from emu_dagster.declarations.declared import Declaration

HEAD = """\
# Written from the declarations in emu_dagster/defs and the paths in params.yaml, by
#     python -m emu_dagster.declarations.dvc_yaml
# stage = asset key = MLflow data set
stages:
"""


def write_stages(declarations: "Mapping[str, Declaration]") -> None:
    """Update dvc.yaml to match the declarations and the paths in params.yaml.

    Raises ValueError if it does not match under `dvc repro` (DVC_STAGE is set), which has already read it.
    """
    layout = Layout(project_root())
    path = layout.root / "dvc.yaml"
    text = render_stages(declarations, read_params(layout.root / "params.yaml"), layout)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    if "DVC_STAGE" in os.environ:
        raise ValueError(
            "dvc.yaml does not match what the assets read: python -m emu_dagster.declarations.dvc_yaml updates it"
        )
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_stages(declarations: "Mapping[str, Declaration]", params: Params, layout: Layout) -> str:
    """Render the text of dvc.yaml: one stage per asset, with what its declaration reads."""
    reads = {key: declaration.inputs(params, layout) for key, declaration in sorted(declarations.items())}
    lines = []
    for key in TopologicalSorter(reads).static_order():
        declaration = declarations[key]
        read = [out for asset in reads[key] for out in declarations[asset].read_outs]
        brought = [_shown(path, layout) for path in declaration.brought(params, layout)]
        lines += [f"  {key}:", f"    cmd: emu materialize {key}"]
        lines += _listed("params", [name for name in declaration.params if _is_set(params, name)])
        lines += _listed("deps", [*read, *brought])
        lines += ["    outs:", *(f"      - {out}: {{persist: true}}" for out in declaration.outs)]
    return HEAD + "\n".join(lines) + "\n"


def _listed(name: str, items: Sequence[str]) -> list[str]:
    return [f"    {name}:", *(f"      - {item}" for item in items)] if items else []


def _shown(path: Path, layout: Layout) -> str:
    return path.relative_to(layout.root).as_posix() if path.is_relative_to(layout.root) else path.as_posix()


def _is_set(params: Params, name: str) -> bool:
    """Return whether params.yaml itself has the entry: DVC does not know the defaults, and fails on a missing entry."""
    value: Any = params
    for part in name.split("."):
        if part not in value.model_fields_set:
            return False
        value = getattr(value, part)
    return True


if __name__ == "__main__":
    from emu_dagster.declarations.loading import load_declarations
    from emu_dagster.resources.dvc import DvcRepo

    write_stages(load_declarations())
    DvcRepo().repair()  # `make repro` then starts dvc, which fails on a half-written dvc.lock
