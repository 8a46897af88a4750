"""`emu prune`: finds what nobody needs below data/, and removes it when asked to.

What goes: finished trainings whose place was taken by one that was asked for later; the states of published ones (a
finished training is published again from its result/ alone); encoded rows that no training names; what killed writers
left. What is unfinished goes only when that is asked for. All else stays: what DVC records (old versions of a signal
lie in data/signals, whose digest is in dvc.lock and is the ledger's data version: without them it would be wrong),
votes, models that no training here has made (replaced-N), and everything that is not known here.
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
from emu_dagster.resources.dvc import DvcRecord
from emu_data.files import TEMPORARY_MARK
from emu_steps.layout import Layout
from emu_steps.training_jobs import published, training_folder

QUIET_SECONDS = 3600.0  # what was written to since may be at work, perhaps on another machine; chosen here
PARTS = {"identity.json", "caches.json", "metrics.jsonl", "state", "result"}  # of a training's folder: identity.py
IDENTITY = re.compile(r"[0-9a-f]{16}")
LEFTOVER = re.compile(rf"\.(.+){re.escape(TEMPORARY_MARK)}[0-9a-f]{{8}}(-old)?")  # files.atomic_file, atomic_dir
CACHE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Found:
    """Something below data/ that may go: why, its size in bytes, and why it stays all the same ("" where it goes)."""

    path: Path
    why: str
    stays: str = ""
    size: int = 0


def prune(root: Path, yes: bool, unfinished: bool) -> None:
    """Prints what nobody needs below root/data, with sizes and why; removes it where `yes`.

    unfinished: trainings that were begun and not finished go as well. Nothing is written where not `yes`; where `yes`,
    no other command and no asset is at work meanwhile. Raises ValueError where `root` is no project.
    """
    if obstacles := find_obstacles(root):
        raise ValueError(obstacles[0])
    with ExitStack() as held:
        if yes:
            dvc, doing = DvcRecord(root=str(root)), "removing what nobody needs"
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
    """Those whose output is a trained model."""
    return [key for key, declaration in load_declarations().items() if f"data/models/{key}" in declaration.outs]


def find(layout: Layout, unfinished: bool = False) -> list[Found]:
    """What nobody needs, and what is like it but stays. Reads alone."""
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
    except (ValueError, AttributeError):  # a meta.json that is no object: nobody can say what stands there
        return
    # of a model that was made elsewhere nobody can say what it has taken the place of
    is_here = bool(names) and all(training_folder(layout, asset, name) in trainings for name in names)
    asked_at = min(_asked_at(training_folder(layout, asset, name)) for name in names) if is_here else 0
    begun = [folder for folder in trainings if not (folder / "result").exists()]
    newest = max(begun, key=_asked_at, default=None)
    for folder in trainings:
        if folder in begun:
            stays = "" if unfinished else "only --unfinished removes it"
            if folder == newest and not names:
                stays = "it is the newest, and no model of it is published"
            elif _is_busy(folder):
                stays = "it was written to within the hour"
            yield Found(folder, "training that was not finished", stays)
        elif folder.name in names:
            if (folder / "state").is_dir():
                yield Found(folder / "state", "state of a training that is finished and published")
        elif _asked_at(folder) < asked_at:  # one asked for later waits to be published, perhaps for others of its asset
            yield Found(folder, f"finished; {', '.join(names)} was asked for later and is published")
    if training_folder(layout, asset).is_dir():
        for folder in sorted(training_folder(layout, asset).glob("replaced-*")):
            yield Found(folder, "model that no training here has made", "it may be the only one; remove it by hand")


def _asked_at(training: Path) -> int:
    """Nanoseconds since 1970. Every start of a training, also of one that is finished, writes its identity.json."""
    return (training / "identity.json").stat().st_mtime_ns


def _trainings(layout: Layout, asset: str) -> list[Path]:
    """The folders of an asset's trainings in which all is known and nothing is half renamed."""
    folder = training_folder(layout, asset)
    found = [path for path in sorted(folder.iterdir()) if IDENTITY.fullmatch(path.name)] if folder.is_dir() else []
    return [path for path in found if path.is_dir() and not path.is_symlink() and _is_known(path)]


def _is_known(training: Path) -> bool:
    paths = list(training.iterdir())
    names = {path.name for path in paths}
    if not names - {name for name in names if LEFTOVER.fullmatch(name)} <= PARTS or "identity.json" not in names:
        return False
    if any(path.is_symlink() for path in paths):  # what is linked may be away for the moment
        return False
    if "result" in names:
        return (training / "result" / "meta.json").is_file()
    return not any(name.startswith(f".result{TEMPORARY_MARK}") and name.endswith("-old") for name in names)


def _find_leftovers(layout: Layout) -> Iterator[Found]:
    """What killed writers left where this program writes. Not in data/raw and data/votes, which people write too."""
    data = layout.data
    folders = [data, data / "models", data / "reports", data / "curation", layout.cache]
    for asset in trained_assets():
        trainings = _trainings(layout, asset)
        folders += [training_folder(layout, asset), *trainings, *(training / "state" for training in trainings)]
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
    """Encoded rows that no training names; none where a training does not say what it reads."""
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
        if all(path.suffix == ".safetensors" or LEFTOVER.fullmatch(path.name) for path in cache.iterdir()):
            yield Found(cache, "encoded rows that no training names; made again when asked for")


def _walk(path: Path) -> Iterator[os.stat_result]:
    """A path and all below it, links not followed; what goes away meanwhile is left out."""
    below = (Path(folder) / name for folder, folders, files in os.walk(path) for name in (*folders, *files))
    for one in (path, *below):
        with suppress(FileNotFoundError):
            yield one.lstat()


def _last_written(path: Path) -> float:
    """Seconds since 1970, of a folder and all in it."""
    return max((max(one.st_mtime, one.st_ctime) for one in _walk(path)), default=0.0)


def _is_busy(path: Path) -> bool:
    return time.time() - _last_written(path) < QUIET_SECONDS


def _size_of(path: Path) -> int:
    """Bytes that are free when it is removed: files that are linked from elsewhere, too, stay."""
    links: dict[int, list[os.stat_result]] = {}  # by inode
    for file in _walk(path):
        if stat.S_ISREG(file.st_mode):
            links.setdefault(file.st_ino, []).append(file)
    return sum(files[0].st_size for files in links.values() if len(files) >= files[0].st_nlink)


def _remove(path: Path) -> None:
    """Renames it first: of a folder that is half removed nobody must take the rest for the whole."""
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
    table.add_column("what", footer="what goes, in all", overflow="fold")
    table.add_column("size", footer=decimal(sum(one.size for one in going)), justify="right")
    table.add_column("why", overflow="fold")
    for part in (going, [one for one in found if one.stays]):
        for one in sorted(part, key=lambda one: one.path):
            why = f"{one.why}; stays: {one.stays}" if one.stays else one.why
            table.add_row(Text(one.path.relative_to(root).as_posix()), decimal(one.size), Text(why))
        table.add_section()
    return table
