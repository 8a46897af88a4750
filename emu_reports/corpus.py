"""The report on a corpus before anything is dropped: every signal's values, what each threshold drops by itself,
examples on both sides of it, which subjects and sizes lose more, and how often a gate is right by a person's labels.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emu_data.survey import LABELS, Effect, Family, Precision, uneven
from emu_reports.charts import histogram
from emu_reports.page import Card, Picture, Run, describe_run, write_report

THUMBNAIL = 128  # px per side, with the whole picture inside; chosen here
TO_LABEL = "to_label.csv"


@dataclass(frozen=True)
class CorpusFindings:
    """What the page shows; see emu_data.survey. to_label: columns gate, key, caption. images: key -> uint8 (THUMBNAIL,
    THUMBNAIL, 3), without pictures that cannot be decoded. captions: key -> caption, for the same keys.
    """

    num_rows: int
    effects: Sequence[Effect]
    families: Sequence[Family]
    precision: Sequence[Precision]
    to_label: pd.DataFrame
    images: Mapping[str, np.ndarray]
    captions: Mapping[str, str]


def write_corpus_report(directory: Path, findings: CorpusFindings, run: Run) -> dict[str, Any]:
    """Write the page and to_label.csv, and return what report.json holds."""
    # files are named by number, since any text can be a key
    numbers = {key: f"pictures/{number:04d}" for number, key in enumerate(sorted(findings.images))}
    pictures: dict[str, Picture] = {numbers[key]: image for key, image in findings.images.items()}
    charts = {
        effect.field: histogram(effect.edges, effect.counts, effect.threshold, effect.is_minimum, effect.column)
        for effect in findings.effects
    }
    shown = findings.to_label[findings.to_label["key"].isin(list(numbers))]
    data = {
        **describe_run(run),
        "num_rows": findings.num_rows,
        "effects": findings.effects,
        "families": findings.families,
        "uneven": uneven(findings.families),
        "precision": {one.gate: one for one in findings.precision},
        "to_label": {str(gate): rows[["key", "caption"]] for gate, rows in shown.groupby("gate", sort=False)},
        "pictures": numbers,
        "captions": dict(findings.captions),
    }
    lines = io.StringIO()
    table = csv.writer(lines)
    table.writerow(LABELS)
    table.writerows([row.key, row.gate, ""] for row in shown.itertuples())
    return write_report(directory, "corpus", data, pictures, charts, [Card("corpus", 45)], {TO_LABEL: lines.getvalue()})
