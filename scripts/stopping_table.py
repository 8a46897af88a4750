"""Writes tests/emu_data/votes/pyterrier_tar.json: what `pyterrier-tar` says where our stops must say the same.

It is an oracle of the tests and no dependency: it brings pyterrier and two dozen packages of text retrieval. Run this
by a Python of its own that has it:

    python -m venv /tmp/tar && /tmp/tar/bin/pip install pyterrier-tar==0.1.2
    /tmp/tar/bin/python scripts/stopping_table.py
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier_tar as tar  # pyrefly: ignore  # not locked: see the docstring

TABLE = Path(__file__).resolve().parent.parent / "tests" / "emu_data" / "votes" / "pyterrier_tar.json"
RECALLS, CONFIDENCES, NUM_KEEPERS = (0.5, 0.8, 0.9, 0.95), (0.9, 0.95, 0.99), 200
NUM_REVIEWS, NUM_ITEMS = 24, 100


def main() -> None:
    rng = np.random.default_rng(0)
    table = {
        "written_by": f"scripts/stopping_table.py with pyterrier-tar {version('pyterrier-tar')}",
        "required_ranks": [
            {
                "recall": recall,
                "confidence": confidence,
                # one more than there are where nothing can be certified
                "ranks": [tar.QBCB.required_control_rank(n, recall, confidence) for n in range(NUM_KEEPERS + 1)],
            }
            for recall in RECALLS
            for confidence in CONFIDENCES
        ],
        "reviews": [review(rng) for _ in range(NUM_REVIEWS)],
    }
    lines = [f'"written_by": {json.dumps(table["written_by"])}']
    for name in ("required_ranks", "reviews"):
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in table[name])
        lines.append(f'"{name}": [\n{rows}\n]')
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def review(rng: np.random.Generator) -> dict[str, object]:
    """A review of items in the order of their numbers, and what three rules say of it (None: never stop)."""
    chance = np.linspace(rng.uniform(0.6, 1.0), 0.2, NUM_ITEMS)
    labels = (rng.random(NUM_ITEMS) < chance).astype(int)
    control = np.sort(rng.choice(NUM_ITEMS, int(rng.integers(NUM_ITEMS // 5, NUM_ITEMS)), replace=False))
    probabilities = np.round(np.clip(chance + rng.normal(0, 0.05, NUM_ITEMS), 0.01, 0.99), 2)
    recall, run, num_seen = float(rng.choice(RECALLS[:3])), int(rng.integers(3, 9)), int(rng.integers(1, NUM_ITEMS))
    names = [str(i) for i in range(NUM_ITEMS)]
    ranked = pd.DataFrame({"qid": "q", "docno": names, "rank": range(NUM_ITEMS), "label": labels})
    sample = pd.DataFrame({"qid": "q", "docno": [names[i] for i in control], "label": labels[control]})
    estimate, variance = tar.QuantCI(recall)._estimate(probabilities, num_seen)
    return {
        "labels": "".join(map(str, labels)),
        "control": control.tolist(),
        "recall": recall,
        "qbcb_stop": stop_of(tar.QBCB(sample, recall), ranked),
        "misses": run,
        "misses_stop": stop_of(tar.ConsecutiveIrrelevant(run), ranked),
        "probabilities": probabilities.tolist(),
        "num_seen": num_seen,
        "quant_recall": estimate,
        "quant_deviation": float(np.sqrt(variance)),
    }


def stop_of(rule: Any, ranked: pd.DataFrame) -> int | None:
    row = rule.stop_report(ranked).iloc[0]
    return int(row["stop"]) if row["fired"] else None


if __name__ == "__main__":
    main()
