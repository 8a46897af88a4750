"""The funnel report: where every raw picture went, with examples that each gate turned away (paper sec.
3.3).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emu_dagster.reporting.page import Picture, Run, describe_run, write_report

# What each gate asks, in words; the thresholds are the policy's.
QUESTIONS = {
    "readable": "Did it arrive, and can it be decoded?",
    "geometry": "Is it large enough, and no sliver?",
    "caption": "Is there a caption that says something?",
    "safety": "Is it safe, by the corpus's own score?",
    "text_area": "Is it free of text laid over it?",
    "alignment": "Does the caption fit the picture?",
    "duplicate": "Is it the only one of its kind?",
    "quota": "Is there room for one more of its concept?",
}


def write_funnel_report(
    directory: Path,
    funnel: pd.DataFrame,
    examples: Mapping[str, Sequence[tuple[np.ndarray, str]]],
    quality: pd.DataFrame | None,
    counts: Mapping[str, float],
    run: Run,
) -> dict[str, Any]:
    """Write the page and return what its report.json holds.

    funnel: a row a gate, columns gate, num_in, num_dropped, num_out. examples: gate -> rejected pictures,
    uint8 (H, W, 3), with their captions. quality: a row a gate, columns gate, num_damaged, num_dropped,
    num_right, precision, recall; None where no damage is known. counts: further figures (alignment_auc,
    concept_entropy_before_bits, …).
    """
    pictures: dict[str, Picture] = {}
    shown: dict[str, list[dict[str, str]]] = {}
    for gate, rejects in examples.items():
        shown[gate] = []
        for number, (picture, caption) in enumerate(rejects):
            name = f"pictures/{gate}-{number:02d}"
            pictures[name] = picture
            shown[gate].append({"file": f"{name}.png", "caption": caption or ""})
    by_gate = {} if quality is None else quality.set_index("gate").to_dict(orient="index")
    num_raw = int(funnel["num_in"].iloc[0])
    gates = [
        {
            **row,
            "question": QUESTIONS.get(str(row["gate"]), ""),
            "examples": shown.get(str(row["gate"]), []),
            "quality": by_gate.get(str(row["gate"])),
        }
        for row in funnel.to_dict(orient="records")
    ]
    data = {
        "kind": "funnel",
        **describe_run(run),
        "num_raw": num_raw,
        "num_kept": int(funnel["num_out"].iloc[-1]),
        "gates": gates,
        "has_truth": quality is not None,
        "counts": dict(counts),
    }
    return write_report(directory, "funnel", data, pictures)
