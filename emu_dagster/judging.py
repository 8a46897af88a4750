"""Side-by-side judgement of the two models by rubric panels, in the votes' format, and the reports on it.

A is the tuned model, B the pretrained one. The appeal judges' criteria are not those that chose the curated set; the
faithfulness judge is a model that filtering never used.
"""

import pandas as pd
from PIL import Image

from emu_dagster.evaluating import read_pictures
from emu_dagster.layout import Layout
from emu_dagster.params import PanelReport, Params
from emu_dagster.registering import METRICS_FILE
from emu_data.agreement import measure_agreement
from emu_data.appeal import AppealPanel
from emu_data.files import write_json
from emu_data.ledger import read_ledger
from emu_data.pairs import draw_side_order
from emu_data.votes import Vote, VoteLog, export_parquet, votes_to_frame

CONFIDENCE = 0.95


def report_appeal(layout: Layout, params: Params) -> tuple[dict[str, float], Image.Image]:
    """Holds the appeal round and writes data/reports/appeal_report."""
    section = params.appeal_report
    prompts = pd.read_parquet(layout.evaluation / "prompts.parquet")
    tuned, pretrained = (read_pictures(layout.evaluation, m, prompts) for m in ("tuned", "pretrained"))
    votes = AppealPanel(section.num_raters, section.seed).vote(tuned, pretrained, prompts["key"].tolist(), "appeal")
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
            rater=row.rater,
            rater_kind="rubric",
            key=row.key,
            decision=row.decision,
            score=float(row.score_a - row.score_b),
            side_order=draw_side_order(section.seed, row.rater, row.key),
        )
        for row in decisions.itertuples()
    ]
    return _report(layout, params, "faithfulness_report", section, prompts, votes)
