"""Files at any address that fsspec knows: a local path, s3://, gs://, https://, memory://.

If a store asks for credentials, its own client reads them from the environment (s3fs: AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, …; gcsfs: GOOGLE_APPLICATION_CREDENTIALS). gs:// uses the same code through gcsfs; it was not run
here, because we have no bucket.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote, unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

Options = Mapping[str, Mapping[str, Any]]  # protocol -> storage options of its file system

# Addresses that a row may name in full; file:// and chains such as zip://…::https://… could reach unintended files.
_REMOTE = ("http://", "https://", "s3://", "gs://", "gcs://", "memory://")
_SECRET = re.compile(r"^key$|secret|token|password|credential", re.IGNORECASE)


def check_options(options: Options) -> None:
    """Raise ValueError if an option looks like a secret: options are written into params.yaml and data/raw."""
    secrets = sorted(name for given in options.values() for name in given if _SECRET.search(name))
    if secrets:
        raise ValueError(
            f"storage_options must not hold secrets, but has {secrets}: pass them through the environment "
            "(AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, a profile of ~/.aws)"
        )


@dataclass(frozen=True)
class Store:
    """A file or folder at an address, and how its file system is reached.

    address: a local path, made absolute, or any other address, without slashes at its end. options: fsspec's storage
    options by protocol, without secrets: {"s3": {"anon": True, "endpoint_url": …}}. Raises ValueError if no installed
    package can read such an address.
    """

    address: str
    options: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        filesystem, path = self._open(self.address)
        address = path if isinstance(filesystem, LocalFileSystem) else self.address.rstrip("/")
        object.__setattr__(self, "address", address)

    def __str__(self) -> str:
        return self.address

    def at(self, address: str) -> Self:
        """Return the store at another address, reached with the same options."""
        return replace(self, address=address)

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine."""
        return isinstance(self._open(self.address)[0], LocalFileSystem)

    @property
    def is_web(self) -> bool:
        """Whether it is an http address: its paths are quoted, and its listings are links."""
        return self.address.startswith(("http://", "https://"))

    def join(self, path: str) -> str:
        """Return the address of `path` below this one, quoted if it is a web address."""
        return f"{self.address.rstrip('/')}/{quote(path) if self.is_web else path}"

    def resolve(self, name: str) -> str:
        """Return the address of a picture that a row calls `name`. Raises ValueError if it lies outside this address.

        A whole URL is returned unchanged; a path must lie below this address, and may be relative to it or absolute.
        """
        if "::" not in name and name.startswith(_REMOTE):
            return name
        top = self.address.rstrip("/")
        if name.startswith("/") and (name.startswith(f"{top}/") and "://" not in self.address):
            name = name[len(top) + 1 :]
        path = posixpath.normpath(name)
        if "://" in name or "::" in name or "\0" in name or path.startswith(("/", "../")) or path in ("..", "."):
            raise ValueError(f"{name!r} does not lie below {self.address}")
        return self.join(path)

    def size(self) -> int | None:
        """Return the size of the file in bytes, None if the store does not report it."""
        filesystem, path = self._open(self.address)
        return filesystem.info(path).get("size")

    def list_sizes(self) -> dict[str, int | None]:
        """Return the name of each file and folder here -> its size in bytes, None if the store does not report it."""
        filesystem, path = self._open(self.address)
        found = filesystem.ls(path, detail=True)
        return dict(sorted((posixpath.basename(f["name"].rstrip("/")), f.get("size")) for f in found))

    def walk(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (folder, names of its files) for this folder and each one below it, as paths relative to this address.
        Folders and names are sorted.
        """
        filesystem, root = self._open(self.address)
        for folder, folders, names in filesystem.walk(root):
            folders.sort()
            inside = folder[len(root.rstrip("/")) :].strip("/")
            yield self._unquoted(inside), [self._unquoted(name) for name in sorted(names)]

    def open(self, seekable: bool = False) -> AbstractContextManager[IO[bytes]]:
        """Open the file for reading from the beginning to the end, or at any place if `seekable`."""
        filesystem, path = self._open(self.address)
        if "http" in filesystem.protocol and not seekable:
            return filesystem.open(path, "rb", block_size=0)  # one request, since not every server supports ranges
        return filesystem.open(path, "rb")

    def fetch(self, addresses: Sequence[str], num_bytes: int) -> list[bytes | Exception]:
        """Return the first `num_bytes` of each file, or the exception if it cannot be read. Results are in order;
        remote files are fetched concurrently.

        The addresses need not lie below this store: rows may name whole URLs.
        """
        found: list[bytes | Exception] = [FileNotFoundError("not fetched")] * len(addresses)
        by_system: dict[int, tuple[Any, list[tuple[int, str]]]] = {}
        for index, address in enumerate(addresses):
            filesystem, path = self._open(address)
            by_system.setdefault(id(filesystem), (filesystem, []))[1].append((index, path))
        for filesystem, group in by_system.values():
            paths = [path for _, path in group]
            starts, ends = [0] * len(paths), [num_bytes] * len(paths)
            results = filesystem.cat_ranges(paths, starts, ends, on_error="return")
            for (index, _), data in zip(group, results, strict=True):
                found[index] = data[:num_bytes] if isinstance(data, bytes) else data
        return found

    def download(self, addresses: Sequence[str], folder: Path) -> None:
        """Copy files of this store's file system into a local folder, byte for byte; remote files concurrently.
        Raises FileNotFoundError if one does not exist.
        """
        if addresses:
            filesystem, _ = self._open(self.address)
            paths = [self._open(address)[1] for address in addresses]
            filesystem.get(paths, [str(folder / posixpath.basename(address)) for address in addresses])

    def _open(self, address: str) -> tuple[Any, str]:
        """Return (fsspec file system, path in it)."""
        protocol = address.partition("://")[0] if "://" in address else "file"
        given = dict(self.options.get(protocol, {}))
        try:
            return fsspec.core.url_to_fs(address, **given)
        except (ValueError, ImportError, TypeError) as error:
            raise ValueError(f"{address}: cannot be read with storage_options {given}: {error}") from error

    def _unquoted(self, path: str) -> str:
        return unquote(path) if self.is_web else path
