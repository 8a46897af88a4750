"""Side-by-side judgement of the two models by rubric panels, in the votes' format, and the reports on it.

A is the tuned model, B the pretrained one. The appeal judges' criteria are not those that chose the curated set; the
faithfulness judge is a model that filtering never used.
"""

import shutil
import tempfile
from pathlib import Path

import pandas as pd
from PIL import Image

from emu_dagster.evaluating import read_pictures
from emu_dagster.layout import Layout
from emu_dagster.params import PanelReport, Params
from emu_dagster.registering import METRICS_FILE
from emu_data.agreement import measure_agreement
from emu_data.appeal import AppealPanel
from emu_data.files import atomic_file, write_json
from emu_data.ledger import read_ledger
from emu_data.pairs import draw_side_order
from emu_data.votes import Vote, VoteLog, export_parquet, votes_to_frame


def report_appeal(layout: Layout, params: Params) -> tuple[dict[str, float], Image.Image]:
    """Holds the appeal round and writes data/reports/appeal_report."""
    section = params.appeal_report
    prompts = pd.read_parquet(layout.evaluation / "prompts.parquet")
    tuned, pretrained = (read_pictures(layout.evaluation, m, prompts) for m in ("tuned", "pretrained"))
    votes = AppealPanel(section.num_raters, section.seed, section.repeat_share).vote(
        tuned, pretrained, prompts["key"].tolist(), "appeal"
    )
    return _report(layout, params, "appeal_report", section, prompts, votes)


def report_faithfulness(layout: Layout, params: Params) -> tuple[dict[str, float], Image.Image]:
    """Holds the faithfulness round, on the prompts that name a subject, and writes data/reports/faithfulness_report."""
    from emu_models.evaluation.faithfulness import RATERS, judge_pairs
    from emu_models.evaluation.judge import load_judge

    section = params.faithfulness_report
    if section.num_raters > len(RATERS):
        raise ValueError(f"faithfulness_report.num_raters is {section.num_raters}; the panel has {len(RATERS)} raters")
    prompts = pd.read_parquet(layout.evaluation / "prompts.parquet").query("caption != ''")
    tuned, pretrained = (read_pictures(layout.evaluation, m, prompts) for m in ("tuned", "pretrained"))
    captions = sorted(set(read_ledger(layout.filtered / "ledger")["caption"].dropna()) | set(prompts["caption"]))
    judge = load_judge(layout.model("alignment_model") / "judge")
    decisions = judge_pairs(
        judge,
        tuned,
        pretrained,
        prompts["caption"].tolist(),
        prompts["key"].tolist(),
        captions,
        RATERS[: section.num_raters],
    )
    votes = [
        Vote(
            round="faithfulness",
            rater=row["rater"],
            rater_kind="rubric",
            key=row["key"],
            decision=row["decision"],
            score=row["score_a"] - row["score_b"],
            side_order=draw_side_order(section.seed, row["rater"], row["key"]),
        )
        for row in decisions.to_dict(orient="records")
    ]
    return _report(layout, params, "faithfulness_report", section, prompts, votes)


def _report(
    layout: Layout, params: Params, name: str, section: PanelReport, prompts: pd.DataFrame, votes: list[Vote]
) -> tuple[dict[str, float], Image.Image]:
    from emu_dagster.reporting.preference import Axis, picture_preference, write_preference_report
    from emu_models.evaluation.preference import position_bias, self_consistency, summarise_preference

    axis: Axis = "appeal" if name == "appeal_report" else "faithfulness"
    pictures = {m: read_pictures(layout.evaluation, m, prompts) for m in ("tuned", "pretrained")}
    table = votes_to_frame(votes)
    preference = summarise_preference(table, seed=section.seed, num_resamples=section.num_bootstrap)
    agreement, bias, consistency = measure_agreement(votes), position_bias(table), self_consistency(table)
    metrics = {
        "num_prompts": preference.num_prompts,
        "num_votes": preference.num_votes,
        "win": preference.win.estimate,
        "win_low": preference.win.low,
        "win_high": preference.win.high,
        "lose": preference.lose.estimate,
        "lose_low": preference.lose.low,
        "lose_high": preference.lose.high,
        "tie": preference.tie.estimate,
        "decided_win": preference.decided_win.estimate,
        "decided_win_low": preference.decided_win.low,
        "decided_win_high": preference.decided_win.high,
        "sign_test_p": preference.sign_test_p,
        "left_share": bias.left_share,
        "gwet_ac1": agreement.gwet_ac1,
    }
    folder = layout.report(name)
    # the log is complete before the report that names its head is, and joins it in one piece
    with tempfile.TemporaryDirectory() as scratch:
        log = VoteLog(Path(scratch) / "votes.jsonl")
        head = log.append(votes)
        write_preference_report(
            folder,
            axis,
            preference,
            votes,
            prompts,
            pictures["tuned"],
            pictures["pretrained"],
            agreement,
            bias,
            consistency,
            head,
            params,
        )
        export_parquet(log, folder / "votes.parquet")
        for file in (log.path, log.head_path):
            with atomic_file(folder / file.name) as partial:
                shutil.copyfile(file, partial)
    known = {metric: value for metric, value in metrics.items() if value == value}
    write_json(folder / METRICS_FILE, known)
    return known, picture_preference(axis, preference)
