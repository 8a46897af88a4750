"""A row for every raw picture: every value that was measured, and the first gate that it failed.

The Emu paper gives the kinds of filter (section 3.3) and no threshold; all thresholds here are chosen here
and are the policy's, so that a ledger is decided again in seconds, with no model. Gates of this module look
at one row; the gates that compare rows (duplicate, quota) are in selection.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emu_data.files import fingerprint, write_parquet
from emu_data.records import STATUS_SUCCESS

ROW_GATES = ("readable", "geometry", "caption", "safety", "text_area", "alignment")
GLOBAL_GATES = ("duplicate", "quota")
GATES = ROW_GATES + GLOBAL_GATES

# Which gate answers which kind of damage of the demo corpus (sources/damage.py).
GATE_OF_DAMAGE = {
    "failed": "readable",
    "sliver": "geometry",
    "shrink": "geometry",
    "unsafe": "safety",
    "text": "text_area",
    "caption": "alignment",
    "duplicate": "duplicate",
}


@dataclass(frozen=True)
class FilterPolicy:
    """Thresholds of the row gates; None switches a gate off. Chosen here for the demo's 128 px drawings.

    Photographs of the web want others: DataComp's basic filter takes min_side 200, max_aspect 3, more than 2
    words and more than 5 characters; a first max_text_area for them is 0.07 (docs of issue 3 re-fit it).
    """

    min_side: int | None = 64  # px
    max_aspect: float | None = 3.0  # long side / short side; DataComp's
    min_words: int | None = 1
    min_characters: int | None = 3
    max_unsafe: float | None = 0.5  # probability 0..1
    max_text_area: float | None = 0.05  # share of the picture 0..1
    min_alignment_rank: float | None = 0.5  # share 0..1 of other captions that must fit less well

    @property
    def version(self) -> str:
        """16 hexadecimal digits that name the policy, the folder of its ledger."""
        return fingerprint(self)


@dataclass(frozen=True)
class Limit:
    """One comparison of a gate: a measured column against a field of FilterPolicy, which has the gate's threshold."""

    gate: str
    column: str
    field: str
    is_minimum: bool  # the value must be at least the threshold; else at most

    def is_broken(self, values: pd.DataFrame, policy: FilterPolicy) -> pd.Series:
        """Whether each row is beyond the threshold; False where the value is missing or the threshold is None.

        Raises ValueError where the whole column is missing.
        """
        threshold = getattr(policy, self.field)
        if threshold is None:
            return pd.Series(False, index=values.index)
        if self.column not in values.columns:
            raise ValueError(f"gate {self.gate} needs the column {self.column!r}: measure it, or set its limit to null")
        beyond = values[self.column] < threshold if self.is_minimum else values[self.column] > threshold
        return beyond.fillna(False).astype(bool)


LIMITS = (
    Limit("geometry", "min_side", "min_side", True),
    Limit("geometry", "aspect", "max_aspect", False),
    Limit("caption", "num_words", "min_words", True),
    Limit("caption", "num_characters", "min_characters", True),
    Limit("safety", "unsafe", "max_unsafe", False),
    Limit("text_area", "text_area", "max_text_area", False),
    Limit("alignment", "alignment_rank", "min_alignment_rank", True),
)


def decide(values: pd.DataFrame, policy: FilterPolicy) -> pd.DataFrame:
    """Return `values` (cascade.read_values) with `kept` (bool) and `first_failed_gate` ("" where kept).

    A value that is missing in a row that could be read passes its gate: that is so for `unsafe` alone, where
    the corpus brought none. Raises ValueError where a gate's column is missing altogether: measure it or
    switch it off.
    """
    readable = (values["status"] == STATUS_SUCCESS) & values["error"].isna()
    failed = {"readable": ~readable.fillna(False).astype(bool)}
    for limit in LIMITS:
        failed.setdefault(limit.gate, pd.Series(False, index=values.index))
        failed[limit.gate] |= limit.is_broken(values, policy)
    first = pd.Series("", index=values.index, dtype="string")
    for gate in reversed(ROW_GATES):
        first = first.mask(failed[gate], gate)
    return values.assign(kept=first == "", first_failed_gate=first).astype({"kept": bool})


def check_conserved(ledger: pd.DataFrame, num_raw: int) -> None:
    """Assert that rows in = rows kept + rows dropped by reason, each key once, and every reason a gate's
    name.
    """
    dropped = ledger.loc[~ledger["kept"], "first_failed_gate"].value_counts()
    assert not ledger["key"].duplicated().any(), "a key has two rows"
    assert set(dropped.index) <= set(GATES), f"unknown reasons {sorted(set(dropped.index) - set(GATES))}"
    assert (ledger.loc[ledger["kept"], "first_failed_gate"] == "").all(), "a kept row has a reason"
    assert len(ledger) == num_raw == int(ledger["kept"].sum()) + int(dropped.sum()), (len(ledger), num_raw)


def funnel(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return one row a gate, in order: gate, num_in, num_dropped, num_out."""
    counts = ledger["first_failed_gate"].value_counts()
    rows, num_in = [], len(ledger)
    for gate in GATES:
        num_dropped = int(counts.get(gate, 0))
        rows.append((gate, num_in, num_dropped, num_in - num_dropped))
        num_in -= num_dropped
    return pd.DataFrame(rows, columns=["gate", "num_in", "num_dropped", "num_out"])


def gate_quality(ledger: pd.DataFrame, damage: pd.DataFrame) -> pd.DataFrame:
    """Compare what the gates dropped with what is known to be damaged (the demo's damage.parquet).

    A gate is judged on the rows that reached it. Columns: gate, num_damaged (rows that it should drop),
    num_dropped, num_right, precision and recall (0..1, NaN of nothing). A duplicate drop is right when the
    row and the one kept in its place (`duplicate_of`) come of the same picture, whichever of them was the
    copy. `quota` has no truth.
    """
    merged = ledger.merge(damage[["key", "damage"]], on="key", how="left")
    origin = _origins(damage)
    reached = pd.Series(True, index=merged.index)
    rows = []
    for gate in GATES[:-1]:
        dropped = reached & (merged["first_failed_gate"] == gate)
        if gate == "duplicate":
            group = merged["key"].map(origin)
            num_damaged = int(reached.sum() - group[reached].nunique())
            twins = merged.loc[dropped, "duplicate_of"] if dropped.any() else merged.loc[dropped, "key"]
            num_right = int((twins.map(origin) == group[dropped]).sum())
        else:
            guilty = merged["damage"].map(GATE_OF_DAMAGE.get) == gate
            num_damaged, num_right = int((reached & guilty).sum()), int((dropped & guilty).sum())
        num_dropped = int(dropped.sum())
        precision = num_right / num_dropped if num_dropped else float("nan")
        recall = num_right / num_damaged if num_damaged else float("nan")
        rows.append((gate, num_damaged, num_dropped, num_right, precision, recall))
        reached &= ~dropped
    return pd.DataFrame(rows, columns=["gate", "num_damaged", "num_dropped", "num_right", "precision", "recall"])


def alignment_auc(ledger: pd.DataFrame, damage: pd.DataFrame, column: str = "alignment_rank") -> float:
    """Return the chance (0..1) that a swapped caption scores below a right one, over all rows with a score.

    NaN where there is no swapped caption, or nothing else.
    """
    from sklearn.metrics import roc_auc_score

    merged = ledger.merge(damage[["key", "damage"]], on="key").dropna(subset=[column])
    swapped = merged["damage"] == "caption"
    if swapped.all() or not swapped.any():
        return float("nan")
    return float(roc_auc_score(swapped, -merged[column].astype(float)))


def write_ledger(directory: Path, ledger: pd.DataFrame) -> None:
    """Write the rows of each shard to directory/NNNNN.parquet (`shard` is a column of the ledger)."""
    for shard, rows in ledger.groupby("shard", sort=True):
        write_parquet(Path(directory) / f"{shard}.parquet", rows)


def read_ledger(directory: Path) -> pd.DataFrame:
    """Return all rows of a ledger, in key order. Raises ValueError where there is none."""
    files = sorted(Path(directory).glob("*.parquet"))
    if not files:
        raise ValueError(f"{directory} holds no ledger: run the filters first")
    table = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    return table.sort_values("key", kind="stable", ignore_index=True)


def _origins(damage: pd.DataFrame) -> Mapping[str, str]:
    """Return key -> key of the picture that it is a copy of, itself where it is none."""
    return {key: source or key for key, source in zip(damage["key"], damage["duplicate_of"], strict=True)}
