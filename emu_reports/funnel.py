"""The funnel report: where every raw picture went, with examples that each gate rejected (paper sec. 3.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from emu_data.cascade_order import CascadeOrder, read_order
from emu_data.gate_quality import AUC_GOAL, GATE_GOAL, Auc, alignment_auc, gate_quality, own_caption_auc
from emu_data.ledger import UNMEASURED, funnel
from emu_data.votes.intervals import Interval
from emu_reports.page import Card, Picture, Run, describe_run, write_report

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# The question that each gate answers, as the page shows it; the thresholds are in the policy.
QUESTIONS = {
    "readable": "Was it downloaded, and can it be decoded?",
    "geometry": "Is it large enough, and not too narrow?",
    "blank": "Is anything on it?",
    "caption": "Does it have a meaningful caption?",
    "safety": "Is it safe?",
    "text_area": "Is it free of overlaid text?",
    "alignment": "Does the caption describe the picture?",
    "aesthetics": "Does it look good?",
    "popularity": "Do people like it?",
    UNMEASURED: "Have all the values that these gates need been measured? (If not, an earlier policy had rejected it.)",
    "duplicate": "Is it the best of its near-twins?",
    "size": "Is it large enough to be curated?",
    "quota": "Is there room for it in its concept's quota?",
}
NUM_EXAMPLES = 8  # per gate; chosen here
NUM_REASONS = 10  # reasons named for unreadable rows, the others are counted together; chosen here
THUMBNAIL = 96  # px per side; chosen here


@dataclass(frozen=True)
class Findings:
    """What the page shows of a ledger.

    counts: gate -> number of rows; "" is the rows that were kept. reasons: why rows cannot be read, with counts.
    examples: gate -> rejected pictures, uint8 (H, W, 3), with their captions. quality, alignment_auc: measured against
    the known damage, None if no damage is known. own_caption: per cent, see gate_quality.own_caption_auc. cascade: one
    row of names and values per step of the cascade. sources: signal -> what measured it, in words.
    """

    counts: Mapping[str, int]
    reasons: Sequence[tuple[str, int]] = ()
    examples: Mapping[str, Sequence[tuple[np.ndarray, str]]] = field(default_factory=dict)
    quality: pd.DataFrame | None = None
    alignment_auc: Auc | None = None
    own_caption: Interval | None = None
    cascade: Sequence[Mapping[str, Any]] = ()
    sources: Mapping[str, str] = field(default_factory=dict)


def read_findings(
    con: "DuckDBPyConnection",
    raw: Path,
    signals: Path,
    damage: Path,
    counts: Mapping[str, int],
    ledger: str = "ledger",
) -> Findings:
    """Read a finished ledger, or one that was re-decided with other thresholds. ledger: a table or view of the
    connection.

    raw, signals: the folders of the corpus and of the values measured on it. damage: a parquet of the rows damaged on
    purpose; it may be missing.
    """
    has_truth = damage.is_file() and len(pd.read_parquet(damage, columns=["key"])) > 0
    order = read_order(signals)
    return Findings(
        counts,
        unreadable_reasons(con, ledger),
        read_examples(con, raw, ledger),
        gate_quality(con, damage, ledger) if has_truth else None,
        alignment_auc(con, damage) if has_truth else None,
        own_caption_auc(con),
        describe_order(order) if order else (),
        order.sources if order else {},
    )


def unreadable_reasons(con: "DuckDBPyConnection", ledger: str = "ledger") -> list[tuple[str, int]]:
    """Return why rows cannot be read, with counts, the most frequent reason first: the message of the download or of
    the decoder."""
    rows = con.execute(f"""
        SELECT CASE WHEN error IS NULL THEN concat_ws(': ', status, error_message)
            ELSE split_part(error, ': ', 2) END AS reason, count(*) AS num
        FROM {ledger} WHERE first_failed_gate = 'readable' GROUP BY reason ORDER BY num DESC, reason
    """).fetchall()
    named = [(str(reason), int(num)) for reason, num in rows[:NUM_REASONS]]
    rest = sum(int(num) for _, num in rows[NUM_REASONS:])
    return [*named, ("other reasons", rest)] if rest else named


def example_rows(con: "DuckDBPyConnection", ledger: str = "ledger", num_each: int = NUM_EXAMPLES) -> pd.DataFrame:
    """Return the first few rows of each gate in key order: gate, key, caption, reason (why it cannot be read)."""
    # min(key, n) keeps `num_each` keys per group, so memory does not grow with the number of rows.
    return con.execute(f"""
        WITH firsts AS (SELECT first_failed_gate AS gate, min(key, {num_each}) AS keys
            FROM {ledger} WHERE first_failed_gate <> '' GROUP BY first_failed_gate),
        picked AS (SELECT gate, unnest(keys) AS key FROM firsts)
        SELECT gate, key, caption, coalesce(error, error_message, '') AS reason
        FROM picked JOIN ledger USING (key) ORDER BY gate, key
    """).df()


def read_examples(con: "DuckDBPyConnection", raw: Path, ledger: str) -> dict[str, list[tuple[np.ndarray, str]]]:
    """Return gate -> pictures that it dropped and that can be read, with their captions."""
    from emu_data.guarded import decode_guarded
    from emu_data.shards import iter_samples

    rows = example_rows(con, ledger)
    rows = rows[rows["gate"] != "readable"].fillna({"caption": ""})
    # gates on captions or headers reject pictures that nothing has decoded yet
    found = decode_guarded(iter_samples(raw, rows["key"].tolist()), THUMBNAIL) if len(rows) else ()
    images = {sample.key: image for sample, image in found}
    examples: dict[str, list[tuple[np.ndarray, str]]] = {}
    for gate, key, caption in zip(rows["gate"], rows["key"], rows["caption"], strict=True):
        if key in images:
            examples.setdefault(str(gate), []).append((images[key], caption))
    return examples


def describe_order(order: CascadeOrder) -> list[dict[str, Any]]:
    """Return a row per signal in the cascade's order: its declared cost in ms per picture, and the share (0..1) of the
    pilot's pictures that pass it alone.

    Measured times are reported by Dagster and not here: a page must not depend on a clock.
    """
    return [
        {
            "signal": name,
            "declared cost, ms": order.costs[name],
            "pass rate": order.pass_rates[name],
        }
        for name in order.order
    ]


def write_funnel_report(
    directory: Path,
    findings: Findings,
    figures: Mapping[str, float],
    run: Run,
    before: Mapping[str, int] | None = None,
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the page and return what its report.json holds.

    figures: further numbers (concept_entropy_before_bits, …). before, changes: for a what-if under other thresholds,
    the counts of the ledger itself, and what was changed, in words.
    """
    pictures: dict[str, Picture] = {}
    shown: dict[str, list[dict[str, str]]] = {}
    for gate, rejects in findings.examples.items():
        shown[gate] = []
        for number, (picture, caption) in enumerate(rejects):
            name = f"pictures/{gate}-{number:02d}"
            pictures[name] = picture
            shown[gate].append({"file": f"{name}.png", "caption": caption or ""})
    quality, auc = findings.quality, findings.alignment_auc
    by_gate = {} if quality is None else quality.set_index("gate").to_dict(orient="index")
    table = funnel(findings.counts)
    table = table[(table["gate"] != UNMEASURED) | (table["num_dropped"] > 0)]
    gates = [
        {
            **row,
            "question": QUESTIONS.get(str(row["gate"]), ""),
            "examples": shown.get(str(row["gate"]), []),
            "quality": by_gate.get(str(row["gate"])),
            "num_dropped_before": None if before is None else before.get(str(row["gate"]), 0),
        }
        for row in table.to_dict(orient="records")
    ]
    data = {
        **describe_run(run),
        "num_raw": int(table["num_in"].iloc[0]),
        "num_kept": int(table["num_out"].iloc[-1]),
        "num_kept_before": None if before is None else before.get("", 0),
        "changes": list(changes),
        "gates": gates,
        "reasons": [{"reason": reason, "num": num} for reason, num in findings.reasons],
        "has_truth": quality is not None,
        "goals": {"gate": GATE_GOAL, "auc": AUC_GOAL},
        "auc": auc,
        "own_caption": findings.own_caption,
        "auc_missed_by": max(0.0, AUC_GOAL - auc.value) if auc and auc.value == auc.value else None,
        "cascade": [dict(step) for step in findings.cascade],
        "sources": dict(findings.sources),
        "counts": {"alignment_auc": auc.value if auc else None, **figures},
    }
    cards = [Card("funnel", 50)] if before is None else []  # the index shows only the funnel of the ledger itself
    return write_report(directory, "funnel", data, pictures, cards=cards)
