"""What an asset is given: the params and the data that it declared. Reading anything else is an error, so that Dagster,
DVC and MLflow record everything that an asset read.
"""

from collections.abc import Sequence
from typing import Any, cast

from pydantic import BaseModel

from emu_steps.layout import UndeclaredRead
from emu_steps.params import Params


def give_params(params: Params, asset: str, names: Sequence[str]) -> Params:
    """Restrict `params` to what `asset` may read: the dotted `names` and everything below them. Reading anything else
    raises UndeclaredRead.
    """
    return cast(Params, _View(params, asset, "", tuple(names)))


def values_of(params: Params, names: Sequence[str]) -> dict[str, Any]:
    """Return dotted name -> plain value. Raises KeyError if params.yaml has no such entry."""
    found = {}
    for name in names:
        section, value, part = params, cast(Any, params), ""
        for part in name.split("."):
            if not isinstance(value, BaseModel) or part not in type(value).model_fields:
                raise KeyError(f"{name}: there is no {part} in params.yaml")
            section, value = value, getattr(value, part)
        found[name] = section.model_dump(mode="json", include={part})[part]
    return found


class _View:
    """The declared part of a section. A section that was declared as a whole is returned itself."""

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
