"""How DVC treats files: digests of folders, and YAML as DVC reads and writes it."""

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
    """DVC is missing, failed, or would have recorded something that did not happen."""


def combine(outs: Mapping[str, str]) -> str:
    """Return one digest of {path: md5}: that of the only out, or the md5 of the sorted list."""
    if len(outs) == 1:
        return next(iter(outs.values()))
    entries = [{"md5": md5, "path": path} for path, md5 in sorted(outs.items())]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def list_files(path: Path, ignored: Sequence[str]) -> list[Path]:
    """Return the files below a directory that DVC would hash."""
    files: list[Path] = []
    for folder, folders, names in os.walk(path, followlinks=True):
        keep = [name for name in folders if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)]
        folders[:] = keep
        files += [Path(folder, name) for name in names if not any(fnmatch.fnmatch(name, p) for p in ignored)]
    return files


def measure(path: Path, ignored: list[str]) -> dict[str, Any]:
    """Return {md5, size in bytes, nfiles for a folder} as DVC 3 writes them: the md5 of a folder is that of dvc-data's
    Tree, a sorted list of {md5, relpath} as JSON, followed by ".dir".

    Raises DvcError if `path` does not exist.
    """
    if path.is_file():
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            return {"md5": digest.hexdigest(), "size": file.tell()}
    if not path.is_dir():
        raise DvcError(f"{path} does not exist: the asset that writes it has not been made; `emu status` lists them")
    files = {file.relative_to(path).as_posix(): measure(file, ignored) for file in list_files(path, ignored)}
    listing = json.dumps([{"md5": files[name]["md5"], "relpath": name} for name in sorted(files)], sort_keys=True)
    return {
        "md5": hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir",
        "size": sum(file["size"] for file in files.values()),
        "nfiles": len(files),
    }


def hash_path(path: Path, ignored: list[str]) -> str:
    """Return the md5 that DVC 3 gives a file or directory, see `measure`."""
    return measure(path, ignored)["md5"]


def look_at(path: Path, ignored: Sequence[str] = ALWAYS_IGNORED) -> str:
    """Return a quick summary that changes when files do: their number and bytes, and a digest of their names, sizes and
    times of change (ns). "nothing" if the path does not exist.
    """
    files = list_files(path, ignored) if path.is_dir() else [path] if path.is_file() else []
    if not files and not path.exists():
        return "nothing"
    return look_at_each({file.relative_to(path).as_posix(): file for file in files})


def look_at_each(files: Mapping[str, Path], strictly: bool = False) -> str:
    """Like `look_at`, of files with these names; a missing one has size and time 0. strictly: use the time that the
    system keeps (ctime), which programs cannot set, but which a new link or a new mode changes as well.
    """
    stats: list[tuple[str, int, int]] = []
    for name, file in sorted(files.items()):
        try:
            stat = file.stat()
            stats.append((name, stat.st_size, stat.st_ctime_ns if strictly else stat.st_mtime_ns))
        except OSError:
            stats.append((name, 0, 0))
    listing = "".join(f"{name}\0{size}\0{time}\n" for name, size, time in stats)
    digest = hashlib.md5(listing.encode("utf-8", "surrogateescape"), usedforsecurity=False)
    return f"{len(stats)} files, {sum(size for _, size, _ in stats)} bytes, {digest.hexdigest()}"


def read_ignored(folder: Path) -> list[str]:
    """Return the patterns of .dvcignore. Only patterns of names are supported; ours has no others."""
    path = folder / ".dvcignore"
    lines = path.read_text().splitlines() if path.exists() else []
    return [*ALWAYS_IGNORED, *(line.strip() for line in lines if line.strip() and not line.startswith("#"))]


def _resolve_as_yaml_12(kind: Any) -> None:
    """Make a PyYAML class follow YAML 1.2, as DVC does: `on` is a text, 1e-5 a number and 2026-11-26 a text. PyYAML's
    own rules are those of YAML 1.1.
    """
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
    """Uses libyaml: dvc.lock is read several times per asset, which takes a parser in Python a third of a second each
    time.
    """


class Dumper(yaml.CSafeDumper):
    """Uses libyaml, like Loader. Repeated values are written in full, not as YAML aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always True: DVC writes no aliases."""
        return True


_resolve_as_yaml_12(Loader)
_resolve_as_yaml_12(Dumper)
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # 012 is 12, not octal
Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", repr(value)))
Dumper.add_representer(type(None), lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:null", ""))


def parse_yaml(content: bytes) -> Any:
    """Return the value of a YAML 1.2 document. Raises yaml.YAMLError if it is not one."""
    return yaml.load(content, Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; empty if there is no file."""
    return (parse_yaml(path.read_bytes()) or {}) if path.exists() else {}


def dump_yaml(value: Any) -> bytes:
    """Return `value` in the form in which DVC writes dvc.lock."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True).encode()
