"""The prompts of the evaluation besides the fixed ones of params.yaml: those of a file, or captions of the corpus.

The paper evaluates on PartiPrompts (1 632 rows in the public file) and on 2 100 Open User Input prompts that
were never released (sec. 4).
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("prompt", "prompts", "text", "caption")  # names of a table's column of prompts, in upper or lower case
LINE_END = re.compile(r"\r\n|\n|\r")  # str.splitlines would also split at characters that occur in prompts


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file, in order, without repetitions and without spaces at the ends. num_blank: lines without a
    prompt. num_twice: lines that repeat an earlier prompt."""

    prompts: list[str]
    num_blank: int
    num_twice: int


def common_prompts(captions: Iterable[str], num_prompts: int) -> list[str]:
    """Return the `num_prompts` most frequent captions (or all, if there are fewer), equally frequent ones in
    alphabetical order. Raises ValueError if there are none.
    """
    counts = Counter(caption.strip() for caption in captions if caption.strip())
    if not counts:
        raise ValueError("there are no captions to take prompts from")
    return sorted(counts, key=lambda caption: (-counts[caption], caption))[:num_prompts]


def read_prompt_file(path: Path) -> PromptFile:
    """Read prompts from text in UTF-8, or in UTF-16 with a byte-order mark: one prompt per line; a table with a header
    (.tsv, .csv, or a first line with tabs) that has one of COLUMNS, such as PartiPrompts.tsv; or JSON lines (.jsonl) of
    texts, or of objects with one of COLUMNS.

    Raises ValueError, which names the line and what to do, if it is none of these or holds no prompt.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give one with a prompt per line, or a table with a column prompt")
    text, kind = _decode(path), path.suffix.lower()
    lines = LINE_END.split(text)
    if kind == ".jsonl":
        found = [_from_json(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    elif kind == ".csv":
        found = _from_table(path, list(csv.reader(io.StringIO(text, newline=""), strict=False)))
    elif kind == ".tsv" or "\t" in lines[0]:
        # In PartiPrompts.tsv quotation marks belong to the prompts; those that a spreadsheet adds are removed by cell.
        found = _from_table(path, [[_unquote(cell) for cell in line.split("\t")] for line in lines])
    else:
        found = lines
    prompts = [prompt.strip() for prompt in found]
    if prompts and not prompts[-1]:
        prompts.pop()  # the empty text after the last line's end
    given = [prompt for prompt in prompts if prompt]
    if not given:
        raise ValueError(f"{path} holds no prompts; write one per line")
    once = list(dict.fromkeys(given))
    return PromptFile(once, len(prompts) - len(given), len(given) - len(once))


def _decode(path: Path) -> str:
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path} is not text: it holds zero bytes; give lines of text, or a table as .tsv or .csv")
    return text


def _from_table(path: Path, rows: list[list[str]]) -> list[str]:
    header = [cell.strip().casefold() for cell in rows[0]] if rows else []
    place = next((header.index(name) for name in COLUMNS if name in header), None)
    if place is None:
        columns = f"only {', '.join(map(repr, header))}" if any(header) else "and is empty"
        raise ValueError(
            f"{path}: its first line names no column {' or '.join(COLUMNS)}, {columns}; name one, or save the prompts "
            "as .txt, one per line"
        )
    return [row[place] if place < len(row) else "" for row in rows[1:]]


def _unquote(cell: str) -> str:
    """Remove the quotation marks that a spreadsheet adds to a cell with such marks, which it doubles; other cells are
    returned unchanged."""
    inner = cell[1:-1]
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '""' in inner
    return inner.replace('""', '"') if is_quoted and '"' not in inner.replace('""', "") else cell


def _from_json(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}, is not JSON ({error})") from None
    if isinstance(value, dict):
        named = {str(name).casefold(): part for name, part in value.items()}
        value = next((named[name] for name in COLUMNS if name in named), None)
    if not isinstance(value, str):
        raise ValueError(f"{path}, line {number}, has no text under {' or '.join(COLUMNS)}")
    return value
