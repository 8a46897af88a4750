"""Files at any address that fsspec knows: a local path, s3://, gs://, https://, memory://.

Where a store asks who we are, its own client says so from the environment (s3fs: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
…; gcsfs: GOOGLE_APPLICATION_CREDENTIALS). `options` are fsspec's storage options by protocol, for what is no secret:
{"s3": {"anon": True, "endpoint_url": …}}. gs:// is the same code through gcsfs; it was not run here, for want of a
bucket.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import fsspec
from fsspec.implementations.local import LocalFileSystem

Options = Mapping[str, Mapping[str, Any]]  # protocol -> storage options of its file system

# What a row may name by itself; file:// and chains such as zip://…::https://… would reach what nobody meant.
_REMOTE = ("http://", "https://", "s3://", "gs://", "gcs://", "memory://")
_SECRET = re.compile(r"^key$|secret|token|password|credential", re.IGNORECASE)


def check_options(options: Options) -> None:
    """Raise ValueError where an option looks like a secret: options are written into params.yaml and data/raw."""
    secrets = sorted(name for given in options.values() for name in given if _SECRET.search(name))
    if secrets:
        raise ValueError(
            f"storage_options must hold no secret, but has {secrets}: give it by the environment "
            "(AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, a profile of ~/.aws)"
        )


def open_filesystem(address: str, options: Options) -> tuple[Any, str]:
    """Return (fsspec file system, path in it). Raises ValueError where nothing installed reads such an address."""
    protocol = address.partition("://")[0] if "://" in address else "file"
    given = dict(options.get(protocol, {}))
    try:
        return fsspec.core.url_to_fs(address, **given)
    except (ValueError, ImportError, TypeError) as error:
        raise ValueError(f"{address}: cannot be read with storage_options {given}: {error}") from error


def is_local(address: str) -> bool:
    """Whether it is a path of this machine."""
    return isinstance(open_filesystem(address, {})[0], LocalFileSystem)


def full_address(address: str) -> str:
    """Return a local path absolute, any other address without slashes at its end."""
    filesystem, path = open_filesystem(address, {})
    return path if isinstance(filesystem, LocalFileSystem) else address.rstrip("/")


def resolve(base: str, name: str) -> str:
    """Return the address of a picture that a row calls `name`. Raises ValueError where it lies outside `base`.

    A whole URL is taken as it is; a path is one below `base`, given relative to it or from the root.
    """
    if "::" not in name and name.startswith(_REMOTE):
        return name
    top = base.rstrip("/")
    if name.startswith("/") and (name.startswith(f"{top}/") and "://" not in base):
        name = name[len(top) + 1 :]
    path = posixpath.normpath(name)
    if "://" in name or "::" in name or "\0" in name or path.startswith(("/", "../")) or path in ("..", "."):
        raise ValueError(f"{name!r} does not lie below {base or '(no base)'}")
    return join(base, path)


def join(base: str, path: str) -> str:
    """Return the address of `path` below `base`; on the web with what a URL may not hold quoted."""
    return f"{base.rstrip('/')}/{quote(path) if base.startswith(('http://', 'https://')) else path}"


def open_stream(address: str, options: Options) -> AbstractContextManager[IO[bytes]]:
    """Open for reading from the beginning to the end."""
    filesystem, path = open_filesystem(address, options)
    if "http" in filesystem.protocol:
        return filesystem.open(path, "rb", block_size=0)  # one request, since not every server knows ranges
    return filesystem.open(path, "rb")


def fetch(addresses: Sequence[str], options: Options, num_bytes: int) -> list[bytes | Exception]:
    """Return the first `num_bytes` of each file, or why there are none; in order, concurrently where remote."""
    found: list[bytes | Exception] = [FileNotFoundError("not asked")] * len(addresses)
    by_system: dict[int, tuple[Any, list[tuple[int, str]]]] = {}
    for index, address in enumerate(addresses):
        filesystem, path = open_filesystem(address, options)
        by_system.setdefault(id(filesystem), (filesystem, []))[1].append((index, path))
    for filesystem, asked in by_system.values():
        paths = [path for _, path in asked]
        starts, ends = [0] * len(paths), [num_bytes] * len(paths)
        for (index, _), data in zip(asked, filesystem.cat_ranges(paths, starts, ends, on_error="return"), strict=True):
            found[index] = data[:num_bytes] if isinstance(data, bytes) else data
    return found


def download(addresses: Sequence[str], targets: Sequence[Path], options: Options) -> None:
    """Copy files to local paths, byte for byte; concurrently where remote. What does not exist raises."""
    if addresses:
        filesystem, _ = open_filesystem(addresses[0], options)
        paths = [open_filesystem(address, options)[1] for address in addresses]
        filesystem.get(paths, [str(target) for target in targets])
