"""Finds out which kind of corpus is at an address and how much of it can be read, from names, headers and some
samples.
"""

import posixpath
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from emu_data.addresses import Store
from emu_data.bodies import DAMAGED_COMPRESSION, open_tar, samples_of
from emu_data.picture_names import extension
from emu_data.samples import DecodeError, SampleError, read_size
from emu_data.sources import folder, img2dataset, table
from emu_data.sources.loose import HEADER_BYTES
from emu_data.tars import TarDamage, read_groups
from emu_data.texts import clean, describe_error, is_writable

# Kind -> what such a corpus holds, in the order in which the kinds are tried.
KINDS = {img2dataset.SOURCE: "tars of img2dataset or webdataset", folder.SOURCE: "pictures", table.SOURCE: "table"}
# Errors of these packages mean that a store could not be read: no credentials, no such bucket, no answer.
STORE_CLIENTS = ("aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "s3fs")
NUM_EXAMINED = 3  # samples examined per shard; chosen here
MAX_SHARDS = 1000  # shards opened, evenly spread; chosen here: some minutes for a distant store
NUM_PICTURES = 64  # pictures of a folder or table whose headers are read, evenly spread; chosen here
MAX_ROWS = 10_000  # rows of a table that are read; chosen here
NUM_NAMED = 4  # file types that a count names; chosen here
# Formats that cannot be read directly -> what they are, and what to do.
OTHER_FORMATS = {
    ".xlsx": "a spreadsheet: save it as CSV (UTF-8)",
    ".xls": "a spreadsheet: save it as CSV (UTF-8)",
    ".ods": "a spreadsheet: save it as CSV (UTF-8)",
    ".arrow": "Arrow files, as `datasets` saves them to disk: write them as parquet (dataset.to_parquet)",
    ".feather": "Arrow files: write them as parquet",
    ".tfrecord": "TensorFlow records: write them as webdataset's tars",
    ".mdb": "an LMDB: write it as webdataset's tars",
    ".zip": "an archive: unpack it",
    ".7z": "an archive: unpack it",
    ".rar": "an archive: unpack it",
    ".zst": "compressed by zstd: unpack it",
    ".pkl": "pickles, which are never read here: write them as parquet",
}


@dataclass(frozen=True)
class Corpus:
    """A corpus that was found. source: its kind; path: its full address; settings: other params of raw_corpus that it
    needs; notes: sentences for people."""

    source: str
    path: str
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_corpus(
    store: Store,
    kind: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    base: str | None = None,
) -> Corpus:
    """Return the corpus at an address, read as `kind` if that is given. Raises ValueError if there is none, or if a
    column or base is given and the corpus is not a table.
    """
    looks: dict[str, Callable[[], Corpus | None]] = {
        img2dataset.SOURCE: lambda: _inspect_shards(store),
        folder.SOURCE: lambda: _inspect_folder(store, caption_column),
        table.SOURCE: lambda: _inspect_table(store, image_column, caption_column, base),
    }
    if kind not in (None, *KINDS):
        raise ValueError(f"unknown kind of corpus {kind!r}; the kinds are {', '.join(KINDS)}")
    kinds = [kind] if kind else [table.SOURCE] if table.is_table(store.address) else list(KINDS)
    with _explained(store):
        found = next((corpus for name in kinds if (corpus := looks[name]())), None)
    if found is None:
        lacks = ", ".join(f"no {KINDS[name]}" for name in kinds)
        advice = _other_format(store) or "give the kind with --kind"
        raise ValueError(f"{store} is not a corpus{f' of kind {kind}' if kind else ''}: {lacks}; {advice}")
    if found.source != table.SOURCE:
        given = {"image_column": image_column, "base": base}
        given |= {"caption_column": caption_column} if not found.settings else {}  # a folder's metadata has one too
        if idle := [f"--{name.replace('_', '-')} {value!r}" for name, value in given.items() if value is not None]:
            raise ValueError(f"{idle[0]} is only for tables, but {store} is of kind {found.source}; leave it out")
    return found


@contextmanager
def _explained(store: Store) -> Iterator[None]:
    """Turn an error of a store into a ValueError that says what to do."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{store} does not exist: {error}") from error
    except PermissionError as error:
        raise ValueError(f"no permission to read {store} ({error}): pass credentials by the environment") from error
    except ValueError as error:
        raise ValueError(str(error) if store.address in str(error) else f"{store}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in STORE_CLIENTS:
            raise ValueError(
                f"{store} cannot be read ({type(error).__name__}: {error}): pass credentials by the environment "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS) or, if it needs none, "
                "set raw_corpus.storage_options: {s3: {anon: true}}"
            ) from error
        raise


def _other_format(store: Store) -> str:
    """Say in words what is at an address instead of a corpus; "" if that is unknown."""
    with suppress(OSError, ValueError):
        for name in (store.address, *store.list_sizes()):
            for ending, advice in OTHER_FORMATS.items():
                if name.lower().endswith(ending):
                    return f"{posixpath.basename(name)} is {advice}"
    return ""


def _inspect_shards(store: Store) -> Corpus | None:
    if table.is_table(store.address):
        return None
    shards = img2dataset.list_source(store)
    if not any(".tar" in files for files in shards.values()):
        return None
    first, last = next(iter(shards.values())), list(shards.values())[-1]
    notes = [f"{len(shards)} shards, {next(iter(first.values()))} to {next(iter(last.values()))}"]
    if without := [name for name, files in shards.items() if ".parquet" not in files]:
        notes.append(f"{len(without)} without a parquet (first {without[0]}): rows will be made from their tars")
    if without := [name for name, files in shards.items() if ".tar" not in files]:
        notes.append(f"{len(without)} without a tar (first {without[0]}): their rows will be marked unreadable")
    if with_parquet := [files[".parquet"] for files in shards.values() if ".parquet" in files]:
        notes += _inspect_parquet(store, with_parquet[0])
    tars = [files[".tar"] for files in shards.values() if ".tar" in files]
    notes.append(_look_into_tars(store, _spread(tars, MAX_SHARDS), len(tars)))
    known = {file for files in shards.values() for file in files.values()}
    if others := [name for name in store.list_sizes() if name.endswith(".tar") and name not in known]:
        notes.append(f"{len(others)} tars are left out, since their name is not a number (first {others[0]})")
    return Corpus(img2dataset.SOURCE, store.address, notes=tuple(notes))


def _look_into_tars(store: Store, names: list[str], num_tars: int) -> str:
    """Write a note on the first samples of each tar: how many can be read, and why the others cannot."""
    num_good, problems, first_keys = 0, Tally(), Counter[str]()
    for name in names:
        num_seen = 0
        try:
            with open_tar(store.at(store.join(name))) as (file, seekable):
                for sample in chain.from_iterable(map(samples_of, read_groups(file, seekable))):
                    first_keys[sample.key] += not num_seen
                    if isinstance(sample, SampleError):
                        problems.add(sample.reason, f"{sample.key} in {name}: {sample.detail}")
                    elif problem := _header_problem(sample.image):
                        problems.add(problem[0], f"{sample.key} in {name}: {problem[1]}")
                    else:
                        num_good += 1
                    num_seen += 1
                    if num_seen == NUM_EXAMINED:
                        break
            if not num_seen:
                problems.add("empty", f"{name} holds no samples")
        except TarDamage as error:
            problems.add(error.reason, f"{name}: {error}")
        except DAMAGED_COMPRESSION as error:
            problems.add("truncated", f"{name}: {describe_error(error)}")
        except OSError as error:
            problems.add("unreadable", f"{name}: {describe_error(error)}")
    of = f"each of the {num_tars} tars" if len(names) == num_tars else f"{len(names)} of the {num_tars} tars"
    twice = next((key for key, count in first_keys.items() if count > 1), None)
    counted = f"; several tars count their samples from 0, so keys get a prefix: 00001-{twice}" if twice else ""
    return f"of the first {NUM_EXAMINED} samples of {of}, {num_good} can be read{problems}{counted}"


def _inspect_parquet(store: Store, name: str) -> list[str]:
    """Return notes on the columns of a shard's parquet."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(store.address if store.is_local else temporary) / name
        if not store.is_local:
            store.download([store.join(name)], Path(temporary))
            file = file.with_name(posixpath.basename(store.join(name)))
        try:
            names = pq.read_schema(file).names
        except (pa.ArrowException, OSError) as error:
            return [f"{name} cannot be read ({describe_error(error)}): rows will be made from its tar"]
    missing = sorted(set(img2dataset.NEEDED_COLUMNS) - set(names))
    lacks = [f"{name} lacks {missing}, which will be taken from its tar"] if missing else []
    return [f"columns {', '.join(names)}", *lacks]


def _inspect_folder(store: Store, caption_column: str | None) -> Corpus | None:
    pictures: list[folder.Found] = []
    metadata: list[str] = []
    num_downloads = 0
    others: Counter[str] = Counter()
    for listing in folder.list_folders(store):
        pictures += listing.pictures
        metadata += listing.metadata
        num_downloads += len(listing.downloads)
        others += listing.others
    if not pictures:
        return None
    endings = Counter(extension(found.path) for found in pictures)
    notes = [f"{len(pictures)} pictures: {_count(endings)}"]
    for name in metadata:
        chunk, _, caption = table.first_rows(store.at(store.join(name)), None, caption_column, MAX_ROWS)
        notes.append(f"{name}: {_count_rows(chunk.rows)}, captions in {caption!r}")
    if num_downloads:
        notes.append(f"{num_downloads} parquets of img2dataset: what they list and has no picture gets a row, too")
    without = [found for found in pictures if found.caption is None]
    if without and not metadata:
        first = clean(without[0].path)
        notes.append(f"{len(without)} have no caption file (NAME.txt or .caption), first {first}: to be quarantined")
    if odd := sum(not is_writable(found.path) for found in pictures):
        notes.append(f"{odd} have a name that is not UTF-8: to be quarantined")
    if others:
        notes.append(f"{others.total()} other files are left out: {_count(others)}")
    seen = [found.path for found in _spread(pictures, NUM_PICTURES) if is_writable(found.path)]
    notes.append(_inspect_pictures(store, [store.join(path) for path in seen]))
    settings = {"caption_column": caption_column} if metadata and caption_column else {}
    return Corpus(folder.SOURCE, store.address, settings, notes=tuple(notes))


def _inspect_table(
    store: Store, image_column: str | None, caption_column: str | None, base: str | None
) -> Corpus | None:
    files = table.list_tables(store)
    if not files:
        return None
    chunk, image, caption = table.first_rows(files[0], image_column, caption_column, MAX_ROWS)
    pictures = table.find_base(store, base)
    notes = [f"{len(files)} files, pictures in column {image!r}, captions in {caption!r}"]
    notes.append(f"{posixpath.basename(files[0].address)}: {_count_rows(chunk.rows)}")
    if chunk.inside:
        notes.append("the table itself holds the pictures")
    else:
        addresses: list[str] = []
        outside = Tally()
        for url in _spread([url for url in chunk.rows["url"] if isinstance(url, str) and url], NUM_PICTURES):
            try:
                addresses.append(pictures.resolve(url))
            except ValueError as error:
                outside.add("bad_path", f"{error}: give the folder that paths are relative to with --base")
        if outside.counts:
            notes.append(f"some paths lead out of {pictures}{outside}")
        if addresses:
            notes.append(_inspect_pictures(pictures, addresses))
    settings = {"image_column": image, "caption_column": caption, "base": pictures.address}
    return Corpus(table.SOURCE, store.address, settings, tuple(notes))


def _inspect_pictures(store: Store, addresses: list[str]) -> str:
    problems = Tally()
    for address, data in zip(addresses, store.fetch(addresses, HEADER_BYTES), strict=True):
        if isinstance(data, Exception):  # errors of a store are only noted; nothing depends on them
            problems.add("missing_file" if isinstance(data, FileNotFoundError) else "unreachable", f"{address}")
        elif problem := _header_problem(data):
            problems.add(problem[0], f"{address}: {problem[1]}")
    num_good = len(addresses) - problems.counts.total()
    return f"{num_good} of {len(addresses)} pictures tried have a header that can be read{problems}"


def _header_problem(data: bytes) -> tuple[str, str] | None:
    """Return why a picture's header cannot be read, (reason, detail); None if it can."""
    try:
        read_size(data)
    except DecodeError as error:
        return error.reason, str(error)
    return None


def _count_rows(rows: pd.DataFrame) -> str:
    """Say how many rows there are, how many of them can be used, and why the others cannot."""
    problems = Tally()
    for url, caption, message in zip(rows["url"], rows["caption"], rows["error_message"], strict=True):
        if isinstance(message, str):
            problems.add(message.partition(":")[0], message.partition(": ")[2])
        elif not isinstance(url, str) or not url:
            problems.add("bad_row", "it names no picture")
        elif not isinstance(caption, str):
            problems.add("no_caption", f"{url} has none")
    more = "the first " if len(rows) == MAX_ROWS else ""
    return f"{more}{len(rows)} rows, of which {len(rows) - problems.counts.total()} can be used{problems}"


class Tally:
    """Counts the cases of each reason, and keeps the first."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, detail: str) -> None:
        """Count one more case of a reason."""
        self.counts[reason] += 1
        self._first.setdefault(reason, detail)

    def __str__(self) -> str:
        parts = [f"{number} {reason} (first {self._first[reason]})" for reason, number in self.counts.most_common()]
        return f"; problems: {'; '.join(parts)}" if parts else ""


def _count(counts: Counter[str]) -> str:
    parts = [f"{number} {name}" for name, number in counts.most_common(NUM_NAMED)]
    rest = counts.total() - sum(number for _, number in counts.most_common(NUM_NAMED))
    return ", ".join([*parts, f"{rest} more"] if rest else parts)


def _spread(values: list[Any], num: int) -> list[Any]:
    """Return at most `num` of the values, evenly spread."""
    return values if len(values) <= num else [values[i * len(values) // num] for i in range(num)]
