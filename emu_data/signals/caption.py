"""Properties of the caption, by rules that hold for any script that separates words by spaces; and how often the
corpus repeats it.

A caption that very many pictures share is boilerplate ("image not available", a shop's slogan): COYO drops captions
that occur more than 10 times. Counting needs the whole corpus: `count_captions` reads it in two passes, with memory
that does not grow with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
from typing_extensions import override

from emu_data.files import TEMPORARY_MARK, atomic_file, file_sha256, fingerprint
from emu_data.signals import Columns, LazySample, Measure, Signal

COUNTED_FROM = 5  # occurrences; rarer captions are not boilerplate, and a web corpus has 10⁸ of them; chosen here
MEMORY = "1GB"  # of DuckDB, which spills to disk beyond it; chosen here


@dataclass(frozen=True)
class CaptionSignal(Signal):
    """`num_words`, `num_characters` (without spaces at the ends), `letter_share` (letters / characters, 0..1),
    `distinct_word_share` (distinct words / words, 0..1, 1 without words), `num_occurrences` in the corpus (null if
    fewer than COUNTED_FROM, or not counted).

    Args:
        counts: the parquet that `count_captions` wrote; None if occurrences are not counted.
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

    @override
    def settings(self) -> str | None:
        """Return the SHA-256 of the file of counts; None without one."""
        return None if self.counts is None else file_sha256(Path(self.counts))

    @override
    def describe(self) -> str:
        """Return what is counted, in a few words."""
        return "words and characters of the caption" + (
            "" if self.counts is None else ", and how often it occurs in the corpus"
        )

    @override
    def load(self) -> Measure:
        """Read how often each caption occurs in the corpus, if there are counts."""
        known: dict[str, int] = {}
        if self.counts is not None:
            table = pd.read_parquet(self.counts)
            known = dict(zip(table["caption"], table["num_occurrences"].tolist(), strict=True))

        def measure(batch: Sequence[LazySample]) -> Columns:
            captions = [sample.caption.strip() for sample in batch]
            words = [caption.lower().split() for caption in captions]
            return {
                "num_words": [len(those) for those in words],
                "num_characters": [len(caption) for caption in captions],
                "letter_share": [sum(map(str.isalpha, caption)) / max(1, len(caption)) for caption in captions],
                "distinct_word_share": [len(set(those)) / len(those) if those else 1.0 for those in words],
                "num_occurrences": [known.get(sample.caption) for sample in batch],
            }

        return measure


def count_captions(raw_dir: Path, path: Path, sample_path: Path, num_sampled: int) -> None:
    """Write how often the captions of a corpus occur, and a sample of the distinct ones, in two passes over the
    parquets.

    path: columns caption, num_occurrences, for captions that occur COUNTED_FROM times or more. sample_path: column
    caption, the `num_sampled` distinct captions with the smallest hashes (all if there are fewer). Both are sorted.
    Does nothing if both exist: the caller puts the corpus into their names (`corpus_name`).
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
    """Return 16 hexadecimal digits that identify the rows of a folder's shards: its parquets' names and bytes."""
    files = sorted(file for file in Path(raw_dir).glob("*.parquet") if TEMPORARY_MARK not in file.name)
    return fingerprint([[file.name, file_sha256(file)] for file in files])
