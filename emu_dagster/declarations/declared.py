"""What an asset reads and writes, declared once: `@declared(...)` over a function that takes a `Record`.

From it are derived Dagster's deps and code version, the stage in dvc.yaml, MLflow's params and inputs, and what the
function is given: it cannot read anything else.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu_dagster.declarations.code_hashes import code_hash
from emu_dagster.declarations.given import values_of
from emu_dagster.resources.measured import Measured
from emu_data.clip_models import find_clip
from emu_data.files import fingerprint
from emu_steps.layout import Layout
from emu_steps.params import REGISTERED, Params

EVERY_REPORT = "data/reports/*"  # in `reads`: every asset that writes a report under its own name
Work = Callable[..., Any]  # a function of a resources.recorder.Record that returns Dagster's result


@dataclass(frozen=True)
class Declaration:
    """What an asset reads and writes.

    outs: what it writes, as paths relative to the project's root. reads: the assets whose data it reads, or
    EVERY_REPORT. params: dotted parts of params.yaml that decide its result. how: parts of params.yaml that it may read
    but that do not affect a result, so changing them makes nothing stale. files: dotted params that, if set, name files
    or folders whose bytes it reads, or registered versions: one, a list or a mapping of them. If such a file is an
    asset's output, that asset is one of the inputs. pool: Dagster's pool, which limits how many assets run at once.
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
        """The outs that other assets read. For a round of votes or captions this is only the export, which of votes
        names the head up to which the log is read: the log itself may grow at any time, and what was read stays valid.
        """
        exports = tuple(out for out in self.outs if out.startswith("data/votes/") and out.endswith(".parquet"))
        return exports or self.outs

    def inputs(self, params: Params, layout: Layout) -> list[str]:
        """Return the keys of the assets that it reads under these params."""
        makers = makers_of_outs(layout)
        named = [makers[path] for path in self._paths(params, layout) if path in makers]
        read = [key for name in self.reads for key in (reports_of(DECLARATIONS) if name == EVERY_REPORT else [name])]
        return [key for key in dict.fromkeys([*named, *read]) if key != self.key]

    def brought(self, params: Params, layout: Layout) -> list[Path]:
        """Return the files and folders that it reads and that no asset makes. A path that does not exist is taken for
        the name of weights that a library knows.
        """
        makers = makers_of_outs(layout)
        return [path for path in self._paths(params, layout) if path not in makers and path.exists()]

    def code_version(self, params: Params, layout: Layout) -> str:
        """Return 16 hexadecimal digits: a digest of everything besides the inputs that decides the result (code,
        params, external files, registered versions).
        """
        from emu_dagster.registering import digest_of_version

        measured = Measured(layout.root)
        brought = [measured.see(path)[1]["md5"] for path in self.brought(params, layout)]
        brought += [digest_of_version(name) for name in self._named(params) if name.startswith(REGISTERED)]
        return fingerprint([code_hash(self.function, layout.root), values_of(params, self.params), brought])

    def _paths(self, params: Params, layout: Layout) -> list[Path]:
        named = [name for name in self._named(params) if not name.startswith(REGISTERED)]
        # of NAME@TAG@FILE, which names weights for open_clip, the file
        return [find_clip(name, layout.root).path or layout.root / name for name in named]

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
    """Declare a function of a Record as the asset of the same name. See Declaration for the arguments."""

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
    """Return path of an output -> the asset that makes it."""
    return {layout.root / out: key for key, declaration in DECLARATIONS.items() for out in declaration.outs}


def reports_of(keys: Iterable[str]) -> list[str]:
    """Return those of the assets that write a report under their own name, except the front page, which shows the
    others.
    """
    written = {key for key in keys if f"data/reports/{key}" in DECLARATIONS[key].outs}
    return sorted(written - {"front_page"})
