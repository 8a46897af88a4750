"""What the caption is like, by rules that hold in any script that separates words by spaces; and how often the
corpus repeats it.

A text that stands under very many pictures is boilerplate ("image not available", a shop's slogan): COYO drops
what appears more than 10 times. Counting needs the whole corpus: `count_captions` passes over it once, with
memory that does not grow with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from emu_data.files import TEMPORARY_MARK, atomic_file, file_sha256, fingerprint
from emu_data.signals import Columns, Measure, Record, Signal

COUNTED_FROM = 5  # occurrences; fewer are no boilerplate, and a web corpus has hundreds of millions of them
MEMORY = "1GB"  # that DuckDB may take before it goes to disk; chosen here


@dataclass(frozen=True)
class CaptionSignal(Signal):
    """`num_words`, `num_characters` (spaces at the ends not counted), `letter_share` (letters / characters, 0..1),
    `distinct_word_share` (different words / words, 0..1, 1 of none), `num_occurrences` in the corpus (null where
    fewer than COUNTED_FROM, or not counted).

    Args:
        counts: the parquet that `count_captions` wrote; None counts nothing.
    """

    counts: str | None = None

    name: ClassVar = "caption"
    revision: ClassVar = 2
    columns: ClassVar = {
        "num_words": "Int64",
        "num_characters": "Int64",
        "letter_share": "Float64",
        "distinct_word_share": "Float64",
        "num_occurrences": "Int64",
    }
    needs: ClassVar = "row"
    milliseconds: ClassVar = 0.005

    def settings(self) -> str | None:
        return None if self.counts is None else file_sha256(Path(self.counts))

    def describe(self) -> str:
        return "words and characters of the caption" + (
            "" if self.counts is None else ", and how often it occurs in the corpus"
        )

    def load(self) -> Measure:
        known: dict[str, int] = {}
        if self.counts is not None:
            table = pd.read_parquet(self.counts)
            known = dict(zip(table["caption"], table["num_occurrences"].tolist(), strict=True))

        def measure(batch: Sequence[Record]) -> Columns:
            captions = [record.caption.strip() for record in batch]
            words = [caption.lower().split() for caption in captions]
            return {
                "num_words": [len(those) for those in words],
                "num_characters": [len(caption) for caption in captions],
                "letter_share": [sum(map(str.isalpha, caption)) / max(1, len(caption)) for caption in captions],
                "distinct_word_share": [len(set(those)) / len(those) if those else 1.0 for those in words],
                "num_occurrences": [known.get(record.caption) for record in batch],
            }

        return measure


def count_captions(raw_dir: Path, path: Path, sample_path: Path, num_sampled: int) -> None:
    """Write how often the captions of a corpus occur, and a sample of the distinct ones, in two passes over the
    parquets.

    path: columns caption, num_occurrences, of captions that occur COUNTED_FROM times or more. sample_path: column
    caption, `num_sampled` distinct captions with the smallest hashes (all where there are fewer). Both sorted.
    Nothing is done where both are there: the caller names them for the shards that they are of (`corpus_name`).
    """
    import duckdb

    if path.is_file() and sample_path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(str(file) for file in Path(raw_dir).glob("*.parquet") if TEMPORARY_MARK not in file.name)
    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(path.parent / ".duckdb.tmp")}) as base:
        base.execute("SET preserve_insertion_order = false")
        rows = base.from_parquet(files, union_by_name=True).filter("caption IS NOT NULL")
        counted = rows.aggregate("caption, count(*) AS num_occurrences", "caption")
        queries = {
            path: counted.filter(f"num_occurrences >= {COUNTED_FROM}").order("caption"),
            sample_path: rows.project("caption").distinct().order("md5(caption), caption").limit(num_sampled),
        }
        for file, query in queries.items():
            table = query.arrow().read_all().sort_by("caption")
            with atomic_file(file) as temporary:
                import pyarrow.parquet as pq

                pq.write_table(table, temporary)


def corpus_name(raw_dir: Path) -> str:
    """Return 16 hexadecimal digits that name the rows of a folder's shards: the names and bytes of its parquets."""
    files = sorted(file for file in Path(raw_dir).glob("*.parquet") if TEMPORARY_MARK not in file.name)
    return fingerprint([[file.name, file_sha256(file)] for file in files])
