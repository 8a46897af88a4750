"""`emu prune`: lists what is no longer needed below data/, and removes it with --yes.

It removes: finished trainings that were replaced by one started later; the states of published trainings (to publish
one again, its result/ is enough); encoded rows that no training names; what killed writers left. Unfinished trainings
are removed only with --unfinished. Everything else stays: what DVC records (old versions of a signal are in
data/signals, whose digest is in dvc.lock and is the ledger's data version: without them it would be wrong), votes,
models that were not trained here (replaced-N), and everything that this program does not know.
"""

import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from emu_dagster.declarations.loading import load_declarations
from emu_dagster.machine.processes import one_at_a_time
from emu_dagster.machine.surroundings import find_obstacles
from emu_dagster.resources.dvc import DvcRepo
from emu_data.files import TEMPORARY_MARK
from emu_steps.layout import Layout
from emu_steps.training_jobs import published, training_folder

QUIET_SECONDS = 3600.0  # what was written to since may be in use, perhaps by another machine; chosen here
STATES = ("states", "state")  # what a training continues from; state: written before 2026-11-27
PARTS = {"identity.json", "caches.json", "metrics.jsonl", "result", *STATES}  # of a training's folder (identity.py)
IDENTITY = re.compile(r"[0-9a-f]{16}")
LEFTOVER = re.compile(rf"\.(.+){re.escape(TEMPORARY_MARK)}[0-9a-f]{{8}}(-old)?")  # files.atomic_file, atomic_dir
CACHE = re.compile(r"[0-9a-f]{32}")
ROW_FILE = ("rows.arrow", "about.json")
DERIVED = re.compile(r"(?:groups|places|missing)-[0-9a-f]{16,32}")  # folders beside them


@dataclass(frozen=True)
class Found:
    """Something below data/ that may be removed. why: the reason. stays: why it is kept after all, "" if it is removed.
    size: in bytes.
    """

    path: Path
    why: str
    stays: str = ""
    size: int = 0


def prune(root: Path, yes: bool, unfinished: bool) -> None:
    """Print what is no longer needed below root/data, with sizes and reasons; remove it if `yes`.

    unfinished: also remove trainings that were begun but not finished. Without `yes`, nothing is written; with it,
    other commands and assets wait meanwhile. Raises ValueError if `root` is not a project.
    """
    if obstacles := find_obstacles(root):
        raise ValueError(obstacles[0])
    with ExitStack() as held:
        if yes:
            dvc, doing = DvcRepo(root=str(root)), "removing what is no longer needed"
            held.enter_context(one_at_a_time(dvc.lock.own / "commands.lock", doing))
            for asset in load_declarations():  # runs that Dagster's page started hold these
                held.enter_context(dvc.hold(asset))
        found = find(Layout(root), unfinished)
        going = [one for one in found if not one.stays]
        if found:
            Console().print(_tabulate(root, found))
        if not going:
            print("there is nothing to remove")
        elif not yes:
            command = f"emu prune {'--unfinished ' if unfinished else ''}--yes"
            print(f"nothing was removed; {command} removes this")
        else:
            for one in going:
                _remove(one.path)
            print(f"{decimal(sum(one.size for one in going))} freed")


def trained_assets() -> list[str]:
    """Return the assets whose output is a trained model."""
    return [key for key, declaration in load_declarations().items() if f"data/models/{key}" in declaration.outs]


def find(layout: Layout, unfinished: bool = False) -> list[Found]:
    """Return what is no longer needed, and what looks so but stays. Only reads."""
    found = [one for asset in trained_assets() for one in _find_trainings(layout, asset, unfinished)]
    found += _find_leftovers(layout)
    gone = {one.path for one in found if not one.stays}
    found += _find_caches(layout, gone)
    found = [one for one in found if not gone & set(one.path.parents)]
    return [Found(one.path, one.why, one.stays, _size_of(one.path)) for one in found]


def _find_trainings(layout: Layout, asset: str, unfinished: bool) -> Iterator[Found]:
    model, trainings = layout.model(asset), _trainings(layout, asset)
    try:
        names = published(model)
    except (ValueError, AttributeError):  # meta.json cannot be read: it is unknown which trainings are published
        return
    # it is unknown which trainings a model replaced that was made elsewhere
    is_here = bool(names) and all(training_folder(layout, asset, name) in trainings for name in names)
    requested_at = min(_requested_at(training_folder(layout, asset, name)) for name in names) if is_here else 0
    begun = [folder for folder in trainings if not (folder / "result").exists()]
    newest = max(begun, key=_requested_at, default=None)
    for folder in trainings:
        if folder in begun:
            stays = "" if unfinished else "only --unfinished removes it"
            if folder == newest and not names:
                stays = "it is the newest, and this asset has no published model"
            elif _is_busy(folder):
                stays = "it was written to within the last hour"
            yield Found(folder, "training that was not finished", stays)
        elif folder.name in names:
            for states in (folder / name for name in STATES if (folder / name).is_dir()):
                yield Found(states, "states of a training that is finished and published")
        elif _requested_at(folder) < requested_at:  # one requested later may still be published
            yield Found(folder, f"finished; {', '.join(names)} was requested later and is published")
    if training_folder(layout, asset).is_dir():
        for folder in sorted(training_folder(layout, asset).glob("replaced-*")):
            yield Found(folder, "model that was not trained here", "it may be the only copy; remove it by hand")


def _requested_at(training: Path) -> int:
    """Return when a training was last started, in nanoseconds since 1970. Every start, even of a finished training,
    writes its identity.json.
    """
    return (training / "identity.json").stat().st_mtime_ns


def _trainings(layout: Layout, asset: str) -> list[Path]:
    """Return the folders of an asset's trainings that hold only known files and no half-finished rename."""
    folder = training_folder(layout, asset)
    found = [path for path in sorted(folder.iterdir()) if IDENTITY.fullmatch(path.name)] if folder.is_dir() else []
    return [path for path in found if path.is_dir() and not path.is_symlink() and _is_known(path)]


def _is_known(training: Path) -> bool:
    paths = list(training.iterdir())
    names = {path.name for path in paths}
    if not names - {name for name in names if LEFTOVER.fullmatch(name)} <= PARTS or "identity.json" not in names:
        return False
    if any(path.is_symlink() for path in paths):  # the target of a link may be absent for the moment
        return False
    if "result" in names:
        return (training / "result" / "meta.json").is_file()
    return not any(name.startswith(f".result{TEMPORARY_MARK}") and name.endswith("-old") for name in names)


def _find_leftovers(layout: Layout) -> Iterator[Found]:
    """Find what killed writers left in folders to which only this program writes; data/raw and data/votes are not
    searched, because people write there, too.
    """
    data = layout.data
    folders = [data, data / "models", data / "reports", data / "curation", layout.cache]
    for asset in trained_assets():
        trainings = _trainings(layout, asset)
        folders += [training_folder(layout, asset), *trainings, *(training / "states" for training in trainings)]
    encoded = layout.cache / "encoded"
    folders += [layout.ledger, layout.signals, *layout.signals.glob("*"), layout.cache / "captions"]
    folders += [layout.cache / "rows", encoded, *encoded.glob("*"), *encoded.glob("*/*")]
    for folder in folders:
        if LEFTOVER.fullmatch(folder.name) or not folder.is_dir() or (folder.is_symlink() and folder != data):
            continue
        for path in sorted(folder.iterdir()):
            named = LEFTOVER.fullmatch(path.name)
            if not named or path.is_symlink() or _is_busy(path):
                continue
            if named[2] and not path.with_name(named[1]).exists():
                continue  # the next writer puts it back: restore_dir
            yield Found(path, f"left by a killed writer of {named[1]}")


def _find_caches(layout: Layout, gone: set[Path]) -> Iterator[Found]:
    """Find encoded rows that no training names; nothing if a training does not record which ones it reads."""
    used = set[str]()
    for identity in layout.states.glob("*/*/identity.json"):
        if identity.parent in gone:
            continue
        named = identity.with_name("caches.json")
        try:
            if named.is_file():
                used.update(json.loads(named.read_text()))
            elif "num_text_tokens" in json.loads(identity.read_text())["settings"]["spec"]:  # a denoiser's
                return
        except (ValueError, KeyError, TypeError):
            return
    for cache in sorted((layout.cache / "encoded").glob("*/*")) if used else ():
        if not CACHE.fullmatch(cache.name) or not cache.is_dir() or cache.is_symlink():
            continue
        if cache.name in used or _is_busy(cache):
            continue
        if all(_is_written(path) or LEFTOVER.fullmatch(path.name) for path in cache.iterdir()):
            yield Found(cache, "encoded rows that no training names; made again if needed")


def _is_written(path: Path) -> bool:
    """Whether something in a cache is what trainings write there (training/stored.py, row_file.py)."""
    return path.suffix == ".safetensors" or path.name in ROW_FILE or bool(DERIVED.fullmatch(path.name))


def _walk(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of a path and of everything below it, without following links; what disappears meanwhile is
    left out.
    """
    below = (Path(folder) / name for folder, folders, files in os.walk(path) for name in (*folders, *files))
    for one in (path, *below):
        with suppress(FileNotFoundError):
            yield one.lstat()


def _last_written(path: Path) -> float:
    """Return when a folder or anything in it was last changed, in seconds since 1970."""
    return max((max(one.st_mtime, one.st_ctime) for one in _walk(path)), default=0.0)


def _is_busy(path: Path) -> bool:
    return time.time() - _last_written(path) < QUIET_SECONDS


def _size_of(path: Path) -> int:
    """Return the bytes that its removal would free: files that are also linked from elsewhere do not count."""
    links: dict[int, list[os.stat_result]] = {}  # by inode
    for file in _walk(path):
        if stat.S_ISREG(file.st_mode):
            links.setdefault(file.st_ino, []).append(file)
    return sum(files[0].st_size for files in links.values() if len(files) >= files[0].st_nlink)


def _remove(path: Path) -> None:
    """Remove a path. It is renamed first, so that half-removed folders are never mistaken for complete ones."""
    aside = path
    if not LEFTOVER.fullmatch(path.name):
        aside = path.with_name(f".{path.name}{TEMPORARY_MARK}{uuid.uuid4().hex[:8]}")
        os.replace(path, aside)
    if aside.is_dir():
        shutil.rmtree(aside)
    else:
        aside.unlink()


def _tabulate(root: Path, found: Iterable[Found]) -> Table:
    going = [one for one in found if not one.stays]
    table = Table(show_footer=bool(going))
    table.add_column("what", footer="total to remove", overflow="fold")
    table.add_column("size", footer=decimal(sum(one.size for one in going)), justify="right")
    table.add_column("why", overflow="fold")
    for part in (going, [one for one in found if one.stays]):
        for one in sorted(part, key=lambda one: one.path):
            why = f"{one.why}; stays: {one.stays}" if one.stays else one.why
            table.add_row(Text(one.path.relative_to(root).as_posix()), decimal(one.size), Text(why))
        table.add_section()
    return table
