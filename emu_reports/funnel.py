"""The funnel report: where every raw picture went, with examples that each gate turned away (paper sec. 3.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from emu_data.gate_quality import AUC_GOAL, GATE_GOAL, Auc, alignment_auc, gate_quality
from emu_data.ledger import UNMEASURED, funnel
from emu_data.plan import Plan, read_plan
from emu_reports.page import Card, Picture, Run, describe_run, write_report

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# What each gate asks, in words; the thresholds are the policy's.
QUESTIONS = {
    "readable": "Did it arrive, and can it be decoded?",
    "geometry": "Is it large enough, and no sliver?",
    "caption": "Is there a caption that says something?",
    "safety": "Is it safe?",
    "text_area": "Is it free of text laid over it?",
    "alignment": "Does the caption fit the picture?",
    "aesthetics": "Does it look good?",
    "popularity": "Do people like it?",
    UNMEASURED: "Has everything been measured that these gates ask? (No verdict: an earlier policy had said no.)",
    "duplicate": "Is it the only one of its kind?",
    "quota": "Is there room for one more of its concept?",
}
NUM_EXAMPLES = 8  # a gate
NUM_REASONS = 10  # of unreadable rows that are named; the rest is counted together
THUMBNAIL = 96  # px


@dataclass(frozen=True)
class Findings:
    """What a ledger says, for the page.

    counts: gate -> rows, "" the kept. reasons: why rows are not readable, with counts. examples: gate -> rejected
    pictures, uint8 (H, W, 3), with their captions. quality, alignment_auc: against the known damage, None where
    none is known. plan: the steps of the cascade, each a row of names and values; sources: what measured a
    signal, in words.
    """

    counts: Mapping[str, int]
    reasons: Sequence[tuple[str, int]] = ()
    examples: Mapping[str, Sequence[tuple[np.ndarray, str]]] = field(default_factory=dict)
    quality: pd.DataFrame | None = None
    alignment_auc: Auc | None = None
    plan: Sequence[Mapping[str, Any]] = ()
    sources: Mapping[str, str] = field(default_factory=dict)


def read_findings(
    con: "DuckDBPyConnection",
    raw: Path,
    signals: Path,
    damage: Path,
    counts: Mapping[str, int],
    ledger: str = "ledger",
) -> Findings:
    """Read a finished ledger, or a re-decided one: `ledger` is a table or view of the connection.

    raw, signals: the corpus and what was measured on it; damage: a parquet with what was damaged, may be missing.
    """
    has_truth = damage.is_file() and len(pd.read_parquet(damage, columns=["key"])) > 0
    plan = read_plan(signals)
    return Findings(
        counts,
        unreadable_reasons(con, ledger),
        read_examples(con, raw, ledger),
        gate_quality(con, damage, ledger) if has_truth else None,
        alignment_auc(con, damage) if has_truth else None,
        describe_plan(plan) if plan else (),
        plan.sources if plan else {},
    )


def unreadable_reasons(con: "DuckDBPyConnection", ledger: str = "ledger") -> list[tuple[str, int]]:
    """Return why rows are not readable, commonest first: the download's message, or the decoder's word for it."""
    rows = con.execute(f"""
        SELECT CASE WHEN error IS NULL THEN concat_ws(': ', status, error_message)
            ELSE split_part(error, ': ', 2) END AS reason, count(*) AS num
        FROM {ledger} WHERE first_failed_gate = 'readable' GROUP BY reason ORDER BY num DESC, reason
    """).fetchall()
    named = [(str(reason), int(num)) for reason, num in rows[:NUM_REASONS]]
    rest = sum(int(num) for _, num in rows[NUM_REASONS:])
    return [*named, ("other reasons", rest)] if rest else named


def example_rows(con: "DuckDBPyConnection", ledger: str = "ledger", num_each: int = NUM_EXAMPLES) -> pd.DataFrame:
    """Return the first few rows of each gate in key order: gate, key, caption, told (why it cannot be read)."""
    # min(key, n) keeps `num_each` a group: memory does not grow with the rows.
    return con.execute(f"""
        WITH firsts AS (SELECT first_failed_gate AS gate, min(key, {num_each}) AS keys
            FROM {ledger} WHERE first_failed_gate <> '' GROUP BY first_failed_gate),
        picked AS (SELECT gate, unnest(keys) AS key FROM firsts)
        SELECT gate, key, caption, coalesce(error, error_message, '') AS told
        FROM picked JOIN ledger USING (key) ORDER BY gate, key
    """).df()


def read_examples(con: "DuckDBPyConnection", raw: Path, ledger: str) -> dict[str, list[tuple[np.ndarray, str]]]:
    """Return gate -> pictures that it dropped, with their captions."""
    from emu_data.shards import read_images

    examples = {}
    rows = example_rows(con, ledger)
    for name, some in rows[rows["gate"] != "readable"].groupby("gate"):
        images = read_images(raw, some["key"].tolist(), THUMBNAIL)
        examples[str(name)] = list(zip(images, some["caption"].fillna("").tolist(), strict=True))
    return examples


def describe_plan(plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each signal in the cascade's order: what it is declared to cost a picture, and the share of the
    pilot's pictures that it alone lets pass. What it took on a machine is told by Dagster; a page holds no clock.
    """
    return [
        {
            "signal": name,
            "declared cost, ms": plan.costs[name],
            "pass rate": plan.pass_rates[name],
        }
        for name in plan.order
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

    figures: further numbers (concept_entropy_before_bits, …). before, changes: where this is a re-decision of another
    ledger, its counts and what was changed, in words.
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
        "auc_missed_by": max(0.0, AUC_GOAL - auc.value) if auc and auc.value == auc.value else None,
        "plan": [dict(step) for step in findings.plan],
        "sources": dict(findings.sources),
        "counts": {"alignment_auc": auc.value if auc else None, **figures},
    }
    cards = [Card("funnel", 50)] if before is None else []  # the index shows the funnel of what was written
    return write_report(directory, "funnel", data, pictures, cards=cards)
