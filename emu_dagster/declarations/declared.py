"""What an asset reads and writes, declared once: `@declared(...)` over a function that takes a `Record`.

From the declaration come Dagster's deps and code version, the stage in dvc.yaml, MLflow's params and inputs, and what
the function is given: it cannot read anything else.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu_dagster.declarations.closures import hash_code
from emu_dagster.declarations.given import values_of
from emu_dagster.resources.measured import Measured
from emu_data.files import fingerprint
from emu_steps.layout import Layout
from emu_steps.params import REGISTERED, Params

EVERY_REPORT = "data/reports/*"  # in `reads`: every asset that writes a report of its name
Work = Callable[..., Any]  # a function over a resources.recorder.Record that returns what Dagster is told


@dataclass(frozen=True)
class Declaration:
    """outs: what it writes, from the project's root. reads: the assets whose data it reads, or EVERY_REPORT. params:
    dotted parts of params.yaml that decide its result. how: parts that it is given and that change no result: a change
    of these makes nothing stale. files: dotted params that name files or folders whose bytes it reads, or registered
    versions, where they are set: one, a list or a mapping of them; one that is an asset's output makes that asset a
    read. pool: Dagster's, which bounds how many run at once.
    """

    key: str
    function: Work
    group: str
    kinds: frozenset[str]
    outs: tuple[str, ...]
    reads: tuple[str, ...]
    params: tuple[str, ...]
    how: tuple[str, ...]
    files: tuple[str, ...]
    pool: str | None

    @property
    def read_outs(self) -> tuple[str, ...]:
        """What others read of it. Of a round the export alone, which names the head up to which its log is read: the
        log itself grows at any time, and what was made of its beginning stays true."""
        exports = tuple(out for out in self.outs if out.endswith("/votes.parquet"))
        return exports or self.outs

    def inputs(self, params: Params, layout: Layout) -> list[str]:
        """The assets that it reads under these params."""
        makers = makers_of_outs(layout)
        named = [makers[path] for path in self._paths(params, layout) if path in makers]
        read = [key for name in self.reads for key in (reports_of(DECLARATIONS) if name == EVERY_REPORT else [name])]
        return [key for key in dict.fromkeys([*named, *read]) if key != self.key]

    def brought(self, params: Params, layout: Layout) -> list[Path]:
        """Files and folders that it reads and no asset makes. What is not on this disk is taken for the name of
        weights that a library knows."""
        makers = makers_of_outs(layout)
        return [path for path in self._paths(params, layout) if path not in makers and path.exists()]

    def code_version(self, params: Params, layout: Layout) -> str:
        """16 digits of what, besides its inputs, decides the result: code, params, files that were brought along,
        registered versions."""
        from emu_dagster.registering import digest_of_version

        measured = Measured(layout.root)
        brought = [measured.see(path)[1]["md5"] for path in self.brought(params, layout)]
        brought += [digest_of_version(name) for name in self._named(params) if name.startswith(REGISTERED)]
        return fingerprint([hash_code(self.function), values_of(params, self.params), brought])

    def _paths(self, params: Params, layout: Layout) -> list[Path]:
        return [layout.root / name for name in self._named(params) if not name.startswith(REGISTERED)]

    def _named(self, params: Params) -> list[str]:
        found: list[str] = []
        for value in values_of(params, self.files).values():
            match value:
                case dict():
                    found += value.values()
                case list():
                    found += value
                case _:
                    found.append(value)
        return [name for name in found if name]


DECLARATIONS: dict[str, Declaration] = {}


def declared(
    *,
    group: str,
    kinds: set[str],
    outs: Sequence[str],
    reads: Sequence[str] = (),
    params: Sequence[str] = (),
    how: Sequence[str] = (),
    files: Sequence[str] = (),
    pool: str | None = None,
) -> Callable[[Work], Work]:
    """Declares a function over a Record as the asset of its name. See Declaration for the arguments."""

    def declare(function: Work) -> Work:
        key = function.__name__
        DECLARATIONS[key] = Declaration(
            key,
            function,
            group,
            frozenset(kinds),
            tuple(outs),
            tuple(reads),
            tuple(params),
            tuple(how),
            tuple(files),
            pool,
        )
        return function

    return declare


def makers_of_outs(layout: Layout) -> dict[Path, str]:
    """Path of an output -> the asset that makes it."""
    return {layout.root / out: key for key, declaration in DECLARATIONS.items() for out in declaration.outs}


def reports_of(keys: Iterable[str]) -> list[str]:
    """Those assets that write a report of their name, but for the front page, which shows the others."""
    written = {key for key in keys if f"data/reports/{key}" in DECLARATIONS[key].outs}
    return sorted(written - {"front_page"})
