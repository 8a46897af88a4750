"""Loading all declarations in the folder defs/."""

import importlib
import pkgutil
from types import ModuleType

from emu_dagster import defs
from emu_dagster.declarations.declared import DECLARATIONS, Declaration


def load_modules() -> list[ModuleType]:
    """Import every module in defs/ and return them."""
    return [importlib.import_module(module.name) for module in pkgutil.iter_modules(defs.__path__, f"{defs.__name__}.")]


def load_declarations() -> dict[str, Declaration]:
    """Return asset key -> its declaration, for every asset in defs/."""
    load_modules()
    return DECLARATIONS
