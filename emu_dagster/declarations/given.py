"""What an asset is given: the params and the data that it declared. Reading anything else is an error, so that what
Dagster, DVC and MLflow record of an asset cannot be less than what it read.
"""

from collections.abc import Sequence
from typing import Any, cast

from pydantic import BaseModel

from emu_steps.layout import UndeclaredRead
from emu_steps.params import Params


def give_params(params: Params, asset: str, names: Sequence[str]) -> Params:
    """`params` as `asset` may see them: the dotted `names` and what is below them."""
    return cast(Params, _View(params, asset, "", tuple(names)))


def values_of(params: Params, names: Sequence[str]) -> dict[str, Any]:
    """Dotted name -> plain value. KeyError names what params.yaml does not have."""
    found = {}
    for name in names:
        value: Any = params
        for part in name.split("."):
            if not isinstance(value, BaseModel) or part not in type(value).model_fields:
                raise KeyError(f"{name}: there is no {part} in params.yaml")
            value = getattr(value, part)
        found[name] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return found


class _View:
    """The part of a section that was declared. A section that was declared whole is not viewed but handed out."""

    def __init__(self, value: BaseModel, asset: str, path: str, names: tuple[str, ...]) -> None:
        self._value, self._asset, self._path, self._names = value, asset, path, names

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        path = f"{self._path}.{name}" if self._path else name
        if any(path == given or path.startswith(f"{given}.") for given in self._names):
            return getattr(self._value, name)
        if any(given.startswith(f"{path}.") for given in self._names):
            return _View(getattr(self._value, name), self._asset, path, self._names)
        raise UndeclaredRead(
            f"{self._asset} reads {path} of params.yaml, which its declaration does not name; add it to `params` there"
        )
