"""What is shown in a round: pictures of a folder, of a project's shards, or pairs of pictures named by prompt."""

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu_data.formats import FORMATS
from emu_data.names import name_of
from emu_data.shards import list_shards
from emu_data.texts import clean, decode_text
from emu_data.votes.vote import digest_pair, digest_picture

SUFFIXES = tuple(f".{extension}" for known in FORMATS if known.reader for extension in known.extensions)
CAPTIONS = (".txt", ".caption")  # of a picture's caption beside it, as in emu_data.picture_names


@dataclass(frozen=True)
class Shown:
    """Where a picture's bytes lie: in a file (size 0), or `size` bytes from `offset` on. digest: their SHA-256."""

    path: Path
    key: str
    digest: str
    offset: int = 0
    size: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what the table of items keeps."""
        where = {"path": str(self.path), "offset": self.offset, "size": self.size}
        return {**where, "key": self.key, "digest": self.digest}


@dataclass(frozen=True)
class Draft:
    """Captions that a model proposed. model: which one, as its user calls it; writers do not see that."""

    short: str
    long: str
    model: str = ""


@dataclass(frozen=True)
class NewItem:
    """An item of a round that is about to be opened; see database.Item."""

    key: str
    seen: str
    pictures: tuple[Shown, ...]
    caption: str = ""
    stratum: str = ""
    gold: str | None = None
    draft: Draft | None = None


def read_picture(picture: Mapping[str, Any]) -> bytes:
    """Read the bytes of a picture of an item. Raises FileNotFoundError, or ValueError if they are other ones than when
    the round was opened."""
    with open(picture["path"], "rb") as file:
        file.seek(picture["offset"])
        data = file.read(picture["size"] or -1)
    if digest_picture(data) != picture["digest"]:
        raise ValueError(f"{picture['path']}: the picture was changed since the round was opened")
    return data


def items_of_folder(folder: Path) -> list[NewItem]:
    """Return the pictures below a folder, by path; a text beside a picture is its caption. Raises ValueError if there
    is none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of pictures")
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or path.name.startswith("."):
            continue
        key = clean(path.relative_to(folder).as_posix())
        picture = Shown(path.resolve(), key, digest_picture(path.read_bytes()))
        text = next((one for suffix in CAPTIONS if (one := path.with_suffix(suffix)).is_file()), None)
        caption = "" if text is None else clean(decode_text(text.read_bytes())).strip()
        stratum = clean(path.parent.relative_to(folder).as_posix())
        found.append(NewItem(key, picture.digest, (picture,), caption, "" if stratum == "." else stratum))
    if not found:
        raise ValueError(f"{folder} holds no picture that can be read")
    return found


def items_of_shards(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[NewItem]:
    """Return pictures of a folder of shards. rows: key, stored_sha256, caption and concept of each, in their order.

    Raises ValueError if a shard lacks one.
    """
    places = {key: place for path in list_shards(folder) for key, place in _places(path)}
    found = []
    for row in rows:
        key = str(row["key"])
        if (place := places.get(name_of(key))) is None:
            raise ValueError(f"{folder} holds no picture of {key}: materialise filtered_corpus again")
        path, offset, size = place
        picture = Shown(path, key, str(row["stored_sha256"]), offset, size)
        stratum = row.get("concept")
        caption = str(row.get("caption") or "")
        found.append(NewItem(key, picture.digest, (picture,), caption, stratum if isinstance(stratum, str) else ""))
    return found


def _places(tar: Path) -> Iterator[tuple[str, tuple[Path, int, int]]]:
    with tarfile.open(tar) as opened:
        for member in opened:
            name, _, extension = member.name.partition(".")
            if f".{extension.lower()}" in SUFFIXES:
                yield name, (tar.resolve(), member.offset_data, member.size)


def items_of_pairs(pairs: Sequence[tuple[str, Path, Path, str]], with_caption: bool) -> list[NewItem]:
    """Return pairs of pictures. pairs: key, file of A, file of B, prompt. The prompt is part of what was seen only
    where it is shown."""
    found = []
    for key, first, second, prompt in pairs:
        a, b = first.read_bytes(), second.read_bytes()
        pictures = (Shown(first.resolve(), "A", digest_picture(a)), Shown(second.resolve(), "B", digest_picture(b)))
        seen = digest_pair(a, b, prompt if with_caption else "")
        found.append(NewItem(key, seen, pictures, prompt if with_caption else "", stratum=prompt))
    return found


def items_of_folders(first: Path, second: Path, with_caption: bool) -> list[NewItem]:
    """Return pairs of the pictures of two folders that have the same name but for its suffix, A from the first folder.

    The prompt of a pair is the text beside the picture of A, or the name with spaces for hyphens. Raises ValueError if
    a picture has no counterpart.
    """
    of_first, of_second = (
        {item.key.rpartition(".")[0]: item for item in items_of_folder(folder)} for folder in (first, second)
    )
    if alone := sorted(of_first.keys() ^ of_second.keys()):
        raise ValueError(
            f"{first} and {second}: {len(alone)} pictures are in one of them only, the first is {alone[0]}"
        )
    pairs = []
    for name, item in of_first.items():
        prompt = item.caption or name.rpartition("/")[2].replace("-", " ")
        pairs.append((name, item.pictures[0].path, of_second[name].pictures[0].path, prompt))
    return items_of_pairs(pairs, with_caption)


def group_bursts(items: Sequence[NewItem], groups: Mapping[str, str]) -> list[NewItem]:
    """Return items in which near-twins are one: groups, key -> key of the group's centre, comes from the ledger."""
    members: dict[str, list[NewItem]] = {}
    for item in items:
        members.setdefault(groups.get(item.key, item.key), []).append(item)
    found = []
    for centre, group in members.items():
        ordered = sorted(group, key=lambda item: item.key != centre)
        first, pictures = ordered[0], tuple(picture for item in ordered for picture in item.pictures)
        found.append(NewItem(first.key, first.seen, pictures, first.caption, first.stratum, first.gold))
    return found
