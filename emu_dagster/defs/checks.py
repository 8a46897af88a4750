"""Asset checks. The blocking ones keep what follows from being made of broken data; those on the reports are what the
registry asks before it names a champion (they do not block: a challenger is registered too, with the reason).
"""

import dagster as dg

from emu_dagster.layout import Layout, project_root
from emu_dagster.params import Params, read_params


def _project() -> tuple[Layout, Params]:
    layout = Layout(project_root())
    return layout, read_params(layout.root / "params.yaml")


@dg.asset_check(asset="raw_corpus", blocking=True)
def raw_rows_are_whole() -> dg.AssetCheckResult:
    """Every shard has its parquet, no key appears twice, and something arrived."""
    from emu_data.ledger import open_database
    from emu_data.shards import iter_rows

    layout, _ = _project()
    with open_database() as con:
        con.execute("CREATE TABLE raw (key VARCHAR, status VARCHAR)")
        for rows in iter_rows(layout.raw, ["key", "status"]):
            con.append("raw", rows[["key", "status"]])
        counts = "SELECT count(*), count(*) - count(DISTINCT key), count(*) FILTER (status = 'success') FROM raw"
        ((num_rows, num_twice, num_arrived),) = con.execute(counts).fetchall()
    return dg.AssetCheckResult(
        passed=num_twice == 0 and num_arrived > 0,
        metadata={
            "num_rows": num_rows,
            "num_keys_twice": num_twice,
            "num_arrived": num_arrived,
        },
    )


@dg.asset_check(asset="filtered_corpus", blocking=True)
def rows_are_conserved() -> dg.AssetCheckResult:
    """Rows in, and what tars hold beyond them, = rows kept + rows dropped by reason, over the whole corpus."""
    from emu_data.ledger import check_conserved, count_gates, open_ledger
    from emu_data.records import STATUS_UNLISTED
    from emu_data.shards import iter_rows

    layout, _ = _project()
    ledger = layout.filtered / "ledger"
    num_raw = sum(len(rows) for rows in iter_rows(layout.raw, ["status"]))
    with open_ledger(ledger) as con:
        num_raw += count_gates(con, "status").get(STATUS_UNLISTED, 0)
    try:
        check_conserved(ledger, num_raw)
    except AssertionError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    with open_ledger(ledger) as con:
        num_kept = count_gates(con).get("", 0)
    return dg.AssetCheckResult(passed=True, metadata={"num_rows": num_raw, "num_kept": num_kept})


def check_votes(name: str) -> dg.AssetChecksDefinition:
    """The check of a round's asset."""

    @dg.asset_check(asset=f"{name}_votes", name=f"{name}_votes_are_unaltered", blocking=True)
    def votes_are_unaltered() -> dg.AssetCheckResult:
        """The hash chain of the votes is whole and holds what was recorded of it."""
        from emu_data.rounds import check_log

        problems = check_log(_project()[0].votes(name))
        return dg.AssetCheckResult(passed=not problems, description="; ".join(problems))

    return votes_are_unaltered


generalist_votes_check, specialist_votes_check, appeal_votes_check, faithfulness_votes_check = map(
    check_votes, ("generalist", "specialist", "appeal", "faithfulness")
)


@dg.asset_check(asset="curated_set", blocking=True)
def every_picture_has_a_caption() -> dg.AssetCheckResult:
    """Something was chosen, and each picture has a written caption."""
    from emu_data.shards import read_manifest

    manifest = read_manifest(_project()[0].curated)
    num_without = int((manifest["caption"].str.strip() == "").sum())
    return dg.AssetCheckResult(
        passed=num_without == 0 and len(manifest) > 0,
        metadata={"num_images": len(manifest), "num_without_caption": num_without},
    )


def _check_verdict(name: str) -> dg.AssetCheckResult:
    from emu_dagster.registering import judge_reports

    layout, params = _project()
    verdict = judge_reports(layout, params.registered_model)[name]
    return dg.AssetCheckResult(passed=verdict.passed, severity=dg.AssetCheckSeverity.WARN, description=verdict.reason)


@dg.asset_check(asset="appeal_report")
def tuned_is_more_appealing() -> dg.AssetCheckResult:
    """The tuned model wins more often than registered_model.min_appeal_win, with 95 % confidence."""
    return _check_verdict("appeal_report")


@dg.asset_check(asset="faithfulness_report")
def tuned_is_no_less_faithful() -> dg.AssetCheckResult:
    """The tuned model does not lose more often than registered_model.max_faithfulness_loss, with 95 % confidence."""
    return _check_verdict("faithfulness_report")


@dg.asset_check(asset="automatic_report")
def tuned_is_no_copier() -> dg.AssetCheckResult:
    """No more near-copies of curated pictures than registered_model.max_near_copies."""
    return _check_verdict("automatic_report")
