"""Asset checks. The blocking ones stop broken data from reaching later assets. Those on the reports decide whether the
registry names a champion; they do not block, because a challenger is also registered, with the reason.
"""

import sys

import dagster as dg

from emu_dagster.resources.dvc import DvcRepo
from emu_steps.layout import Layout, project_root
from emu_steps.params import Params, read_params


def _project() -> tuple[Layout, Params]:
    layout = Layout(project_root())
    return layout, read_params(layout.root / "params.yaml")


@dg.asset_check(asset="raw_corpus", blocking=True)
def raw_rows_are_whole() -> dg.AssetCheckResult:
    """Every parquet has its pictures, every key occurs once, and at least one picture was downloaded."""
    from emu_data.ledger import open_database
    from emu_data.shards import SHARD_NUMBER, iter_rows, list_shards

    layout, _ = _project()
    shards = {shard.stem for shard in list_shards(layout.raw)}
    parquets = {path.stem for path in layout.raw.glob("*.parquet") if SHARD_NUMBER.fullmatch(path.stem)}
    if not shards:
        return _failed(f"data/{layout.raw.name} holds no shards: materialise raw_corpus")
    with open_database() as con:
        con.execute("CREATE TABLE raw (key VARCHAR, status VARCHAR)")
        for rows in iter_rows(layout.raw, ["key", "status"]):
            con.append("raw", rows[["key", "status"]])
        counts = "SELECT count(*), count(*) - count(DISTINCT key), count(*) FILTER (status = 'success') FROM raw"
        ((num_rows, num_twice, num_arrived),) = con.execute(counts).fetchall()
    orphans = sorted(parquets - shards)
    wrong = {
        f"{len(orphans)} parquets have no .tar or .ref; the first is {next(iter(orphans), '')}": bool(orphans),
        f"{num_twice} rows have the key of another row": num_twice > 0,
        f"none of the {num_rows} rows has a downloaded picture": num_arrived == 0,
    }
    return dg.AssetCheckResult(
        passed=not any(wrong.values()),
        description="; ".join(text for text, is_so in wrong.items() if is_so),
        metadata={
            "num_rows": num_rows,
            "num_keys_twice": num_twice,
            "num_arrived": num_arrived,
            "num_shards_without_parquet": len(shards - parquets),  # their rows are made from the tar
        },
    )


@dg.asset_check(asset="filtered_corpus", blocking=True)
def rows_are_conserved() -> dg.AssetCheckResult:
    """Every raw row, and every picture in a tar without a row, is in the ledger exactly once: kept, or dropped with a
    reason.
    """
    from emu_data.ledger import check_conserved, compare_with_raw, count_gates, open_ledger
    from emu_data.shards import iter_rows

    layout, _ = _project()
    ledger = layout.filtered / "ledger"
    if not ledger.is_dir():
        return _failed("there is no ledger: materialise filtered_corpus")
    try:
        raw = compare_with_raw(ledger, iter_rows(layout.raw, ["key"]))
        check_conserved(ledger, raw.num_rows + raw.num_unlisted)
    except ValueError as error:
        return _failed(str(error))
    with open_ledger(ledger) as con:
        num_kept = count_gates(con).get("", 0)
    return dg.AssetCheckResult(
        passed=num_kept > 0,
        description="" if num_kept else f"none of the {raw.num_rows} rows was kept: no row passes the thresholds",
        metadata={"num_rows": raw.num_rows, "num_unlisted": raw.num_unlisted, "num_kept": num_kept},
    )


def check_votes(name: str) -> dg.AssetChecksDefinition:
    """Return the check of a round's asset. name: generalist, specialist, appeal or faithfulness."""

    @dg.asset_check(asset=f"{name}_votes", name=f"{name}_votes_are_unaltered", blocking=True)
    def votes_are_unaltered() -> dg.AssetCheckResult:
        """The hash chain of the votes is intact and contains all votes that were recorded."""
        from emu_data.votes.rounds import check_log

        folder = _project()[0].votes(name)
        if not folder.is_dir():
            return _failed(f"there are no votes: materialise {name}_votes")
        problems = check_log(folder)
        return dg.AssetCheckResult(passed=not problems, description="; ".join(problems))

    return votes_are_unaltered


generalist_votes_check, specialist_votes_check, appeal_votes_check, faithfulness_votes_check = map(
    check_votes, ("generalist", "specialist", "appeal", "faithfulness")
)


@dg.asset_check(asset="curated_set", blocking=True)
def every_picture_has_a_caption() -> dg.AssetCheckResult:
    """At least one picture was chosen, and each has a caption."""
    from emu_data.shards import read_manifest

    layout, _ = _project()
    if not layout.curated.is_dir():
        return _failed("there is no curated set: materialise curated_set")
    manifest = read_manifest(layout.curated)
    num_without = int((manifest["caption"].fillna("").str.strip() == "").sum())
    problems = ["no picture was chosen"] if not len(manifest) else []
    problems += [f"{num_without} curated pictures have no caption"] if num_without else []
    return dg.AssetCheckResult(
        passed=not problems,
        description="; ".join(problems),
        metadata={"num_images": len(manifest), "num_without_caption": num_without},
    )


def _failed(reason: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, description=reason)


@dg.asset_check(asset="faithfulness_judge")
def judge_may_be_trusted() -> dg.AssetCheckResult:
    """On pairs with a known answer, the judge's error is below registered_model.max_judge_error, with 95 %
    confidence.
    """
    import json

    from emu_steps.verdicts import judge_verdict

    layout, params = _project()
    meta = layout.model("faithfulness_judge") / "meta.json"
    if not meta.is_file():
        return _warned(False, "there is no judge: materialise faithfulness_judge")
    error = json.loads(meta.read_text())["judge_error"]
    verdict = judge_verdict(error["num_wrong"], error["num_pairs"], params.registered_model.max_judge_error)
    return _warned(verdict.passed, verdict.reason)


def _warned(passed: bool, reason: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, description=reason)


def _check_verdict(name: str) -> dg.AssetCheckResult:
    from emu_dagster.registering import judge_reports

    layout, params = _project()
    verdict = judge_reports(layout, params.registered_model, DvcRepo().digest_of)[name]
    return _warned(verdict.passed, verdict.reason)


@dg.asset_check(asset="appeal_report")
def tuned_is_more_appealing() -> dg.AssetCheckResult:
    """The share of the decided prompts that the tuned model wins is above registered_model.min_appeal_win, with its
    whole confidence interval.
    """
    return _check_verdict("appeal_report")


@dg.asset_check(asset="faithfulness_report")
def tuned_is_no_less_faithful() -> dg.AssetCheckResult:
    """Wins minus losses, in points, are above -registered_model.faithfulness_margin with their whole confidence
    interval, and the judge may be trusted.
    """
    return _check_verdict("faithfulness_report")


@dg.asset_check(asset="automatic_report")
def tuned_is_no_copier() -> dg.AssetCheckResult:
    """The share of near-copies of curated pictures is below registered_model.max_near_copies, with its whole confidence
    interval.
    """
    return _check_verdict("automatic_report")


defs = dg.Definitions(asset_checks=dg.load_asset_checks_from_modules([sys.modules[__name__]]))
