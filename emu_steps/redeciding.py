"""`emu funnel`: the funnel of the current ledger, and what it would be with other thresholds.

No model runs and no ledger is written: the values and the clusters of near-twins are in data/filtered/ledger.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from emu_data.corpus_gates import create_clusters, decide_corpus
from emu_data.formatting import format_count, format_share
from emu_data.ledger import (
    GATES,
    LIMITS,
    UNMEASURED,
    Thresholds,
    count_gates,
    funnel,
    gate_sql,
    ledger_columns,
    open_ledger,
)
from emu_reports.funnel import example_rows, read_findings, unreadable_reasons, write_funnel_report
from emu_reports.page import Run
from emu_steps.filtering import corpus_policy
from emu_steps.layout import Layout
from emu_steps.params import FilteredCorpus, Params, Policy

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

POLICY, SELECTION = "filter_ledger.policy", "filtered_corpus"
# for the gates that have no Limit
ALIASES = {"duplicate": "min_twin_similarity", "size": "min_curated_side", "quota": "num_images"}
NUM_DRAWS = 20_000  # random draws behind the estimate's interval; chosen here


@dataclass(frozen=True)
class Change:
    """One --set option: an entry of params.yaml (dotted section and name), its old and its new value."""

    section: str
    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name} {_yaml(self.old)} -> {_yaml(self.new)}"


@dataclass(frozen=True)
class Estimate:
    """How many of the unmeasured rows would pass if they were measured: the expected number and a 95 % interval.
    num_control: rows of the control sample on which the estimate is based.
    """

    expected: float
    low: float
    high: float
    num_control: int


def parse_changes(params: Params, texts: Sequence[str]) -> tuple[Thresholds, FilteredCorpus, list[Change]]:
    """Apply NAME=VALUE texts to the policies of params.yaml; return both policies and the changes.

    A name is an entry of params.yaml, or the name of a gate or column that has exactly one limit. Raises ValueError if
    a name is unknown or ambiguous, or a value does not fit.
    """
    policy, section = params.filter_ledger.policy.model_dump(), params.filtered_corpus
    changes = []
    for text in texts:
        given, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: write NAME=VALUE, as in --set text_area=0.03")
        name = _field(given.strip())
        try:
            new = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--set {text}: {value!r} is not a YAML value") from None
        if name in FilteredCorpus.model_fields:
            old = getattr(section, name)
            section = _checked(FilteredCorpus, {**section.model_dump(), name: new}, text)
            changes.append(Change(SELECTION, name, old, getattr(section, name)))
            continue
        if new is not None:
            if isinstance(new, bool) or not isinstance(new, (int, float)) or not math.isfinite(new):
                raise ValueError(f"--set {text}: a threshold must be a number, or null to switch its gate off")
            _checked(Policy, {**params.filter_ledger.policy.model_dump(), name: new}, text)
        changes.append(Change(POLICY, name, policy[name], new))
        policy = {**policy, name: new}
    return policy, section, changes


def show_funnel(layout: Layout, params: Params, texts: Sequence[str], gate: str | None = None) -> None:
    """Print the ledger's funnel or, with `texts`, the funnel before and after the changes, which data/reports/funnel/
    then shows, too.

    gate: also list some rows that this gate rejected. Raises ValueError if there is no such gate.
    """
    if gate is not None and gate not in GATES:
        raise ValueError(f"there is no gate {gate!r}; there are: {', '.join(GATES)}")
    policy, section, changes = parse_changes(params, texts)
    console = Console()
    with open_ledger(layout.filtered / "ledger") as con:
        before = count_gates(con)
        now, after = "ledger", before
        if changes:
            expression = gate_sql(policy, ledger_columns(con))
            if section.min_twin_similarity != params.filtered_corpus.min_twin_similarity:
                create_clusters(con, section.min_twin_similarity)
            try:
                after = decide_corpus(con, expression, corpus_policy(section)).counts
            except ValueError as error:  # too few rows pass for num_images: show the counts without quotas
                console.print(f"no quotas: {error}", highlight=False, markup=False)
                after = decide_corpus(con, expression, replace(corpus_policy(section), num_images=None)).counts
            now = _create_redecided(con, expression)
        console.print(_table(params, before, after if changes else None))
        for reason, num in unreadable_reasons(con, now):
            console.print(f"  not readable: {reason}: {num}", highlight=False, markup=False)
        if after.get(UNMEASURED):
            _print_unmeasured(console, after[UNMEASURED], estimate_unmeasured(con, policy))
        if gate is not None:
            _print_examples(console, con, now, gate)
        report = layout.report("funnel" if changes else "filtered_corpus")
        if changes:
            findings = read_findings(con, layout.raw, layout.signals, layout.damage, after, now)
            run, told = Run(params.profile, params.toy), [str(change) for change in changes]
            write_funnel_report(report, findings, {}, run, before, told)
    for change in changes:
        line = _line_of(layout, change)
        console.print(
            f"to keep this change, set {change.section}.{change.name}: {_yaml(change.new)} (params.yaml, {line}); "
            "then run emu materialize",
            highlight=False,
        )
    console.print(f"page: {(report / 'index.html').relative_to(layout.root)}", highlight=False)


def estimate_unmeasured(con: "DuckDBPyConnection", policy: Thresholds) -> Estimate:
    """Estimate how many rows of the view `ledger` that `policy` leaves unmeasured would pass its row gates.

    The estimate comes from the control sample: random rows that every signal measured although the same gate had
    rejected them. Of these, it uses the rows that pass the gates which the unmeasured rows have passed. In each such
    group the pass rate has Jeffreys' posterior, Beta(passed + 1/2, failed + 1/2); the interval is that of the sum over
    groups.
    """
    columns = ledger_columns(con)
    groups = con.execute(f"""
        SELECT first_failed_gate, unmeasured, count(*) FROM ledger
        WHERE ({gate_sql(policy, columns)}) = '{UNMEASURED}' GROUP BY ALL ORDER BY ALL
    """).fetchall()
    rng = np.random.default_rng(0)
    total, num_control = np.zeros(NUM_DRAWS), 0
    for old_gate, unmeasured, num in groups:
        skipped = set(unmeasured.split(","))
        off = {limit.field: None for limit in LIMITS if (limit.signal or limit.gate) in skipped}
        found = con.execute(
            f"""SELECT count(*), count(*) FILTER (({gate_sql(policy, columns)}) = '') FROM ledger
            WHERE first_failed_gate = ? AND coalesce(unmeasured, '') = ''
                AND ({gate_sql({**policy, **off}, columns)}) = ''""",
            [old_gate],
        ).fetchone()
        assert found is not None
        num_all, num_passed = found
        num_control += num_all
        total += num * rng.beta(num_passed + 0.5, num_all - num_passed + 0.5, NUM_DRAWS)
    low, high = np.quantile(total, [0.025, 0.975])
    return Estimate(float(total.mean()), float(low), float(high), num_control)


def _create_redecided(con: "DuckDBPyConnection", expression: str) -> str:
    """Create the view `redecided`, the ledger with the decisions of decide_corpus, and return its name."""
    con.execute(f"""
        CREATE OR REPLACE TEMP VIEW redecided AS
        SELECT l.* EXCLUDE (gate, first_failed_gate, kept, duplicate_of), coalesce(o.duplicate_of, '') AS duplicate_of,
            coalesce(o.gate, l.gate) AS first_failed_gate
        FROM (SELECT *, {expression} AS gate FROM ledger) l LEFT JOIN left_out o USING (key)
    """)
    return "redecided"


def _table(params: Params, before: Mapping[str, int], after: Mapping[str, int] | None) -> Table:
    shown = before if after is None else after
    table = Table(title=f"funnel, profile {params.profile}" + (" (a toy scale)" if params.toy else ""))
    table.add_column("gate", style="bold")
    for name in ("in", "dropped", "share of in", "out", *(("dropped before", "change") if after is not None else ())):
        table.add_column(name, justify="right")
    for row in funnel(shown).to_dict(orient="records"):
        gate, dropped, num_in = str(row["gate"]), int(row["num_dropped"]), int(row["num_in"])
        was = before.get(gate, 0)
        if gate == UNMEASURED and not dropped and not was:
            continue
        cells = [f"{num_in}", f"{dropped}", format_share(dropped / num_in if num_in else None, 1), f"{row['num_out']}"]
        table.add_row(gate, *cells, *((f"{was}", f"{dropped - was:+d}") if after is not None else ()))
    kept, was = shown.get("", 0), before.get("", 0)
    table.add_row("kept", "", "", "", f"{kept}", *((f"{was} kept", f"{kept - was:+d}") if after is not None else ()))
    return table


def _print_unmeasured(console: Console, num: int, found: Estimate) -> None:
    console.print(
        f"{num} rows must be measured first (emu materialize filter_ledger). Of these, about "
        f"{format_count(found.expected)} would pass the row gates (95 % interval {format_count(found.low)} to "
        f"{format_count(found.high)}), "
        f"estimated from {found.num_control} comparable rows of the control sample"
        + ("" if found.num_control else ": none, so the estimate says nothing"),
        highlight=False,
    )


def _print_examples(console: Console, con: "DuckDBPyConnection", ledger: str, gate: str) -> None:
    rows = example_rows(con, ledger, 12)
    table = Table(title=f"some rows that {gate} rejected")
    for name in ("key", "caption", *(("why",) if gate == "readable" else ())):
        table.add_column(name, overflow="fold")
    for row in rows[rows["gate"] == gate].fillna("").itertuples():
        cells = [str(row.key), str(row.caption), *([str(row.reason)] if gate == "readable" else [])]
        table.add_row(*[cell.replace("[", r"\[") for cell in cells])
    console.print(table)


def _field(name: str) -> str:
    """Return the entry that a name in --set stands for."""
    thresholds = list(Policy.model_fields)
    settable = list(FilteredCorpus.model_fields)
    if name in thresholds or name in settable:
        return name
    if name in ALIASES:
        return ALIASES[name]
    of_column = [limit.field for limit in LIMITS if limit.column == name]
    meant = sorted(set(of_column or [limit.field for limit in LIMITS if limit.gate == name]))
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise ValueError(f"--set {name}: it could mean {' or '.join(meant)}; use one of these names")
    raise ValueError(f"--set {name}: there is no such threshold; the names are: {', '.join([*thresholds, *settable])}")


def _checked(model: type[Any], values: dict[str, Any], text: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"--set {text}: {error.errors()[0]['msg']}") from None


def _line_of(layout: Layout, change: Change) -> str:
    """Say where an entry is in params.yaml: "line N"."""
    node: Any = yaml.compose((layout.root / "params.yaml").read_text())
    for part in (*change.section.split("."), change.name):
        found = next((pair for pair in node.value if pair[0].value == part), None)
        if found is None:
            return f"to be added to {change.section}"
        key, node = found
        line = key.start_mark.line + 1
    return f"line {line}"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
