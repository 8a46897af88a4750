"""What DVC makes of files: digests of folders, and YAML as DVC reads and writes it."""

import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ALWAYS_IGNORED = (".dvc", ".git", ".hg")  # DVC's own defaults
CHUNK = 1 << 20  # bytes read at a time


class DvcError(RuntimeError):
    """DVC is missing, failed, or was about to record something that is not what happened."""


def combine(outs: Mapping[str, str]) -> str:
    """The one digest of {path: md5}: that of the only out, or the md5 of the sorted list."""
    if len(outs) == 1:
        return next(iter(outs.values()))
    entries = [{"md5": md5, "path": path} for path, md5 in sorted(outs.items())]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def list_files(path: Path, ignored: Sequence[str]) -> list[Path]:
    """The files below a directory that DVC would hash."""
    files: list[Path] = []
    for folder, folders, names in os.walk(path, followlinks=True):
        keep = [name for name in folders if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)]
        folders[:] = keep
        files += [Path(folder, name) for name in names if not any(fnmatch.fnmatch(name, p) for p in ignored)]
    return files


def measure(path: Path, ignored: list[str]) -> dict[str, Any]:
    """{md5, size in bytes, for a folder nfiles} as DVC 3 writes them: the md5 of a folder is that of dvc-data's Tree,
    sorted {md5, relpath} as JSON, with ".dir" behind it.

    Raises DvcError when there is nothing at `path`.
    """
    if path.is_file():
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            return {"md5": digest.hexdigest(), "size": file.tell()}
    if not path.is_dir():
        raise DvcError(f"{path} does not exist: what should have written it has not run")
    files = {file.relative_to(path).as_posix(): measure(file, ignored) for file in list_files(path, ignored)}
    listing = json.dumps([{"md5": files[name]["md5"], "relpath": name} for name in sorted(files)], sort_keys=True)
    return {
        "md5": hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir",
        "size": sum(file["size"] for file in files.values()),
        "nfiles": len(files),
    }


def hash_path(path: Path, ignored: list[str]) -> str:
    """The md5 that DVC 3 gives a file or directory, see `measure`."""
    return measure(path, ignored)["md5"]


def look_at(path: Path, ignored: Sequence[str] = ALWAYS_IGNORED) -> str:
    """A quick summary that changes when files do: their number and bytes, and a digest of names, sizes and times of
    change (ns). "nothing" where there is nothing."""
    files = list_files(path, ignored) if path.is_dir() else [path] if path.is_file() else []
    if not files and not path.exists():
        return "nothing"
    stats = sorted((file.relative_to(path).as_posix(), file.stat()) for file in files)
    digest = hashlib.md5(
        "".join(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n" for name, stat in stats).encode(),
        usedforsecurity=False,
    )
    return f"{len(stats)} files, {sum(stat.st_size for _, stat in stats)} bytes, {digest.hexdigest()}"


def read_ignored(folder: Path) -> list[str]:
    """Patterns of .dvcignore. Only those of names are understood, which is all that ours holds."""
    path = folder / ".dvcignore"
    lines = path.read_text().splitlines() if path.exists() else []
    return [*ALWAYS_IGNORED, *(line.strip() for line in lines if line.strip() and not line.startswith("#"))]


def _resolve_as_yaml_12(kind: Any) -> None:
    """DVC reads and writes YAML 1.2, in which `on` is a text, 1e-5 a number and 2026-11-26 a text; PyYAML's own rules
    are those of 1.1."""
    kind.yaml_implicit_resolvers = {}
    for tag, pattern, first in (
        ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
        ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
        ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
        ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
        ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
        ("merge", r"^<<$", "<"),
    ):
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


class Loader(yaml.CSafeLoader):
    """By libyaml: dvc.lock is read several times an asset, and a parser in Python takes a third of a second for it."""


class Dumper(yaml.CSafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_resolve_as_yaml_12(Loader)
_resolve_as_yaml_12(Dumper)
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # 012 is twelve
Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", repr(value)))
Dumper.add_representer(type(None), lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:null", ""))


def parse_yaml(content: bytes) -> Any:
    return yaml.load(content, Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, empty where there is no file."""
    return (parse_yaml(path.read_bytes()) or {}) if path.exists() else {}


def dump_yaml(value: Any) -> bytes:
    """`value` in the form in which DVC writes dvc.lock."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True).encode()
