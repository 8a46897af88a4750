"""What lies at an address: which kind of corpus, told from names and headers alone."""

import tempfile
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emu_data.addresses import Options, download, fetch, full_address, is_local, join, resolve
from emu_data.records import DecodeError, read_size
from emu_data.sources import folder, img2dataset, table
from emu_data.sources.loose import HEADER_BYTES

KINDS = (img2dataset.SOURCE, table.SOURCE, folder.SOURCE)
# Whose own errors say that a store could not be read: no credentials, no such bucket, nobody answers.
STORE_CLIENTS = ("aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "s3fs")
NUM_LOOKED_AT = 3  # pictures whose headers are read as a first look; chosen here


@dataclass(frozen=True)
class Corpus:
    """A corpus that was found: its kind, full address, what raw_corpus needs besides, and what to tell people."""

    source: str
    path: str
    settings: dict[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()


def find_corpus(
    address: str,
    kind: str | None = None,
    options: Options | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    base: str | None = None,
) -> Corpus:
    """Return what lies at `address`, taking it for `kind` if given. Raises ValueError where it is no corpus."""
    options, path = options or {}, full_address(address)
    if kind not in (None, *KINDS):
        raise ValueError(f"there is no kind {kind!r} of corpus; there are: {', '.join(KINDS)}")
    found = _look(address, path, kind, options, image_column, caption_column, base)
    if found.source != table.SOURCE:
        given = {"image_column": image_column, "caption_column": caption_column, "base": base}
        if idle := [f"--{name.replace('_', '-')} {value!r}" for name, value in given.items() if value is not None]:
            raise ValueError(f"{idle[0]}: only a table has that, and {address} is of kind {found.source}; leave it out")
    return found


def _look(
    address: str,
    path: str,
    kind: str | None,
    options: Options,
    image_column: str | None,
    caption_column: str | None,
    base: str | None,
) -> Corpus:
    try:
        if kind == table.SOURCE or (kind is None and path.lower().endswith(table.SUFFIXES)):
            return _look_at_table(path, options, image_column, caption_column, base)
        shards = img2dataset.list_source(path, options) if kind in (None, img2dataset.SOURCE) else {}
        if any(".tar" in suffixes for suffixes in shards.values()):
            return _look_at_shards(path, options, shards)
        if kind in (None, folder.SOURCE) and (found := _look_at_folder(path, options)):
            return found
        if kind is None:
            return _look_at_table(path, options, image_column, caption_column, base)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{address} does not exist: {error}") from error
    except PermissionError as error:
        raise ValueError(f"{address} may not be read ({error}): give the credentials by the environment") from error
    except ValueError as error:
        if kind is None and "holds no table" in str(error):
            raise ValueError(
                f"{address} is no corpus: no NNNNN.tar of img2dataset, no table, no pictures; --kind names the kind"
            ) from error
        raise ValueError(str(error) if address in str(error) else f"{address}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in STORE_CLIENTS:
            raise ValueError(
                f"{address} cannot be read ({type(error).__name__}: {error}): give the credentials by the environment "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS), or without any, "
                "raw_corpus.storage_options: {s3: {anon: true}}"
            ) from error
        raise
    raise ValueError(f"{address} is no corpus of kind {kind}")


def _look_at_shards(path: str, options: Options, shards: dict[str, set[str]]) -> Corpus:
    told = [f"{len(shards)} shards, {next(iter(shards))} to {next(reversed(shards))}"]
    if without := [name for name, suffixes in shards.items() if ".parquet" not in suffixes]:
        told.append(f"{len(without)} without a parquet (first {without[0]}): their rows will be made from the tars")
    if without := [name for name, suffixes in shards.items() if ".tar" not in suffixes]:
        told.append(f"{len(without)} without a tar (first {without[0]}): their rows will say unreadable")
    first = next((name for name, suffixes in shards.items() if ".parquet" in suffixes), None)
    if first is not None:
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(path) / f"{first}.parquet"
            if not is_local(path):
                file = Path(temporary) / file.name
                download([join(path, file.name)], [file], options)
            try:
                names = pq.read_schema(file).names
            except (pa.ArrowException, OSError) as error:
                told.append(f"{first}.parquet cannot be read ({error}): its rows will be made from its tar")
            else:
                told.append(f"columns {', '.join(names)}")
                if missing := sorted(set(img2dataset.NEEDED_COLUMNS) - set(names)):
                    told.append(f"{first}.parquet lacks {missing}, which will be taken from its tar")
    return Corpus(img2dataset.SOURCE, path, told=tuple(told))


def _look_at_folder(path: str, options: Options) -> Corpus | None:
    found = list(islice(folder.iter_pictures(path, options), NUM_LOOKED_AT))
    if not found:
        return None
    told = [_look_at_pictures([join(path, name) for name, _ in found], options)]
    if not any(has_caption for _, has_caption in found):
        told.append(f"no caption beside {found[0][0]} (NAME.txt): such pictures will be quarantined")
    return Corpus(folder.SOURCE, path, told=tuple(told))


def _look_at_table(
    path: str, options: Options, image_column: str | None, caption_column: str | None, base: str | None
) -> Corpus:
    files = table.list_tables(path, options)
    rows, image, caption = table.first_rows(files[0], image_column, caption_column, options, NUM_LOOKED_AT)
    base = full_address(base) if base else files[0].rpartition("/")[0]
    addresses, told = [], [f"{len(files)} files, pictures in column {image!r}, captions in {caption!r}"]
    for url in rows["url"].dropna():
        try:
            addresses.append(resolve(base, url))
        except ValueError as error:
            told.append(f"{error}: --base names the folder that paths are relative to")
    if addresses:
        told.append(_look_at_pictures(addresses, options))
    settings = {"image_column": image, "caption_column": caption, "base": base}
    return Corpus(table.SOURCE, path, settings, tuple(told))


def _look_at_pictures(addresses: list[str], options: Options) -> str:
    problems = []
    for address, data in zip(addresses, fetch(addresses, options, HEADER_BYTES), strict=True):
        try:
            if isinstance(data, Exception):
                raise data
            read_size(data)
        except (DecodeError, Exception) as error:  # whatever a store raises is told, nothing is decided by it
            problems.append(f"{address}: {type(error).__name__}: {error}")
    told = f"{len(addresses) - len(problems)} of the first {len(addresses)} pictures have a header that can be read"
    return f"{told}; {problems[0]}" if problems else told
