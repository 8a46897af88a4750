"""Reads params.yaml; a single error lists every wrong entry by its dotted name."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from emu_steps.params.older import MOVED, moved_to

if TYPE_CHECKING:
    from emu_steps.params import Params


def read_params(path: Path) -> "Params":
    """Read and check params.yaml. Raises ValueError, naming each wrong entry by its dotted name."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing in {path.parent}; `emu profile emoji` writes one")
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, _modified: int) -> "Params":
    try:
        given = yaml.load(path.read_bytes(), yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {' '.join(str(error).split())}; correct it there") from None
    return check_params(given, path.name)


def check_params(given: Any, name: str = "params.yaml") -> "Params":
    """Check the contents of a YAML file and return them as Params. name: of the file, for messages.

    Raises ValueError, naming each wrong entry by its dotted name.
    """
    from emu_steps.params import Params

    try:
        return Params.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False)
        wrong = {".".join(map(str, e["loc"])): e["msg"].removeprefix("Value error, ") for e in found}
        lines = [f"  {entry}: {message}{moved_to(entry)}" for entry, message in wrong.items()]
        if MOVED.keys() & wrong.keys():
            command = "`emu profile NAME --overwrite`"
            lines.append(f"{name} is of an older version: move these entries, or write a new file with {command}")
        raise ValueError("\n".join([f"{name} has wrong entries:", *lines])) from None
