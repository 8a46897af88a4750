"""The prompts that models are asked besides the fixed ones of params.yaml: common ones of the corpus, PartiPrompts.

The paper evaluates on PartiPrompts (1 632 rows in the public file) and on 2 100 Open User Input prompts that
were never released (sec. 4).
"""

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PARTI_COLUMNS = ("Prompt", "Category", "Challenge", "Note")


@dataclass(frozen=True)
class PartiPrompt:
    """A row of PartiPrompts (Yu et al. 2022, arXiv 2206.10789)."""

    prompt: str
    category: str
    challenge: str
    note: str


def common_prompts(captions: Iterable[str], num_prompts: int) -> list[str]:
    """The `num_prompts` commonest captions, level ones in alphabetical order (fewer if there are fewer).

    Raises ValueError if there are none.
    """
    counts = Counter(caption.strip() for caption in captions if caption.strip())
    if not counts:
        raise ValueError("there are no captions to take prompts from")
    return sorted(counts, key=lambda caption: (-counts[caption], caption))[:num_prompts]


def read_parti_prompts(path: Path) -> list[PartiPrompt]:
    """Read PartiPrompts.tsv (UTF-8, tab-separated, columns Prompt, Category, Challenge, Note).

    Raises ValueError if the file is missing, is no such table, or has a row without a prompt; it names the
    line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the path of PartiPrompts.tsv")
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            # QUOTE_NONE: the public file has quotation marks inside prompts that are no field quotes.
            rows = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error})") from error
    header = tuple(cell.strip() for cell in rows[0]) if rows else ()
    missing = [name for name in PARTI_COLUMNS if name not in header]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {', '.join(missing)}; a PartiPrompts table has "
            f"{', '.join(PARTI_COLUMNS)}, separated by tabs"
        )
    places = [header.index(name) for name in PARTI_COLUMNS]
    prompts = []
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        cells = [row[place].strip() if place < len(row) else "" for place in places]
        if not cells[0]:
            raise ValueError(f"{path}, line {line}: the prompt is empty")
        prompts.append(PartiPrompt(*cells))
    if not prompts:
        raise ValueError(f"{path} has a header but no prompts")
    return prompts
