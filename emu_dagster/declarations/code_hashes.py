"""Digests of code, kept in data/cache as long as no source file changes: parsing the sources takes more than a second,
reading them a few hundredths of a second.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from emu_dagster.declarations.closures import PACKAGES, TOP, hash_code, hash_module
from emu_data.files import write_json

FILE = Path("data/cache/code_hashes.json")  # below the project's root; it may be deleted


def code_hash(function: Callable, root: Path) -> str:
    """Return `closures.hash_code(function)`, kept below the project's `root`."""
    name = f"{function.__module__}:{inspect.unwrap(function).__name__}"
    return _kept(root / FILE, name, lambda: hash_code(function))


def module_hash(module: str, root: Path) -> str:
    """Return `closures.hash_module(module)`, kept below the project's `root`."""
    return _kept(root / FILE, module, lambda: hash_module(module))


def digest_sources(top: Path) -> str:
    """Return the SHA-256 over everything that digests of code depend on: names and bytes of every file in our packages
    below `top`, and Python's version, which decides how a syntax tree is written.
    """
    digest = hashlib.sha256(sys.version.encode())
    for package in PACKAGES:
        for file in sorted((top / package).rglob("*")):
            if "__pycache__" not in file.parts and file.is_file():
                content = file.read_bytes()
                digest.update(f"{file.relative_to(top).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()


@cache
def _sources_at_start() -> str:
    return digest_sources(TOP)


def _kept(file: Path, name: str, compute: Callable[[], str]) -> str:
    known = _read(file)
    if known.get("sources") != _sources_at_start():
        known = {"sources": _sources_at_start()}
    if name not in known:
        known[name] = compute()
        if digest_sources(TOP) == known["sources"]:  # otherwise a file was edited meanwhile
            with suppress(OSError):  # if it cannot be written, it is computed again next time
                write_json(file, known)
    return known[name]


def _read(file: Path) -> dict[str, str]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
