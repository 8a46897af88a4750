"""captions.jsonl: the captions that people wrote, every version of each in the order in which it was written.

The last version counts. Lines are only ever added; the file is replaced as a whole, so that it never holds half a line.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from emu_data.files import atomic_file

CAPTIONS_NAME = "captions.jsonl"
TABLE_NAME = "captions.parquet"
# Column -> type of the table that captions_to_frame returns.
COLUMNS = {
    **dict.fromkeys(("key", "seen", "short", "long", "rater", "time", "plan", "draft", "unedited"), "string"),
    "distance": "Int64",
}


@dataclass(frozen=True)
class WrittenCaption:
    """One version of the captions of one picture.

    key, seen, plan: as in Vote. short, long: a phrase, and one to three sentences; one of them may be "". rater: a
    pseudonym. time: UTC in ISO 8601. draft: what a model proposed, "" if nothing; distance: characters edited in it
    (Levenshtein), None without a draft. unedited: which of "short,long" are the draft as it was; "" if neither is.
    """

    key: str
    seen: str
    short: str
    long: str
    rater: str
    time: str
    plan: str = ""
    draft: str = ""
    distance: int | None = None
    unedited: str = ""

    def __post_init__(self) -> None:
        if not self.key or not self.rater or not f"{self.short}{self.long}".strip():
            raise ValueError(f"a caption needs a key, a rater and a text; got {self!r}")


def read_captions(folder: Path) -> list[WrittenCaption]:
    """Return all versions in the order of the file; none if there is no file. Raises ValueError with the line that
    cannot be read."""
    path = folder / CAPTIONS_NAME
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found.append(WrittenCaption(**json.loads(line)))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: no readable caption ({error})") from error
    return found


def add_captions(folder: Path, captions: Iterable[WrittenCaption]) -> int:
    """Add the captions that the file lacks and return how many those were. Whoever calls this holds the log of the
    folder, since it reads and then writes."""
    present = read_captions(folder)
    known = set(present)
    new = [caption for caption in captions if caption not in known]
    if new:
        with atomic_file(folder / CAPTIONS_NAME) as partial:
            lines = [json.dumps(asdict(one), ensure_ascii=False, sort_keys=True) for one in [*present, *new]]
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(new)


def counted_captions(captions: Iterable[WrittenCaption], items: Mapping[str, str]) -> dict[str, WrittenCaption]:
    """Return key -> the last version that was written for what is shown now. items: as for votes.vote.counted."""
    return {caption.key: caption for caption in captions if items.get(caption.key) == caption.seen}


def captions_to_frame(captions: Iterable[WrittenCaption]) -> pd.DataFrame:
    """Return a row per caption, with the columns of WrittenCaption."""
    return pd.DataFrame([asdict(one) for one in captions], columns=list(COLUMNS)).astype(COLUMNS)


def frame_to_captions(table: pd.DataFrame) -> list[WrittenCaption]:
    """Return the captions of a table that captions_to_frame made."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [WrittenCaption(**{str(name): value for name, value in row.items()}) for row in rows]
