"""All declarations of the folder defs/."""

import importlib
import pkgutil

from emu_dagster import defs
from emu_dagster.declarations.declared import DECLARATIONS, Declaration


def load_declarations() -> dict[str, Declaration]:
    """Asset key -> its declaration, of every module in defs/."""
    for module in pkgutil.iter_modules(defs.__path__, f"{defs.__name__}."):
        importlib.import_module(module.name)
    return DECLARATIONS
