"""Side-by-side judgement of the two models: what rubric panels say where no person voted, and the reports on the votes.

A is the tuned model, B the pretrained one. The appeal judges' criteria are not those that chose the curated set; the
faithfulness judge is a model that filtering never used.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from emu_data.formatting import format_percent, format_span
from emu_data.ledger import read_ledger
from emu_data.shards import read_images
from emu_data.votes.agreement import measure_agreement
from emu_data.votes.pairs import draw_side_order
from emu_data.votes.panels.appeal import AppealPanel, round_score
from emu_data.votes.vote import Vote, counted, counted_repeats, digest_pair, votes_to_frame
from emu_reports.sheets import contact_sheet
from emu_steps.evaluating import SHEET_TILE, read_pictures
from emu_steps.evidence import write_evidence
from emu_steps.layout import Layout
from emu_steps.params import AppealVotes, FaithfulnessVotes, Params
from emu_steps.voting import Ballots, read_votes

if TYPE_CHECKING:
    from emu_reports.preference import Axis


def read_prompts(layout: Layout, axis: "Axis") -> pd.DataFrame:
    """The prompts that are judged: all for appeal, those that name a subject of the corpus for faithfulness."""
    prompts = pd.read_parquet(layout.evaluation / "prompts.parquet")
    return prompts if axis == "appeal" else prompts.query("caption != ''")


def digest_pairs(layout: Layout, axis: "Axis", prompts: pd.DataFrame) -> dict[str, str]:
    """key -> digest of what raters are shown, for `counted`: both pictures, and for faithfulness the caption."""
    found = {}
    for key, caption in zip(prompts["key"], prompts["caption"], strict=True):
        tuned, pretrained = ((layout.evaluation / m / f"{key}.png").read_bytes() for m in ("tuned", "pretrained"))
        found[key] = digest_pair(tuned, pretrained, caption if axis == "faithfulness" else "")
    return found


def appeal_ballots(layout: Layout, section: AppealVotes) -> Ballots:
    prompts = read_prompts(layout, "appeal")
    tuned, pretrained = (read_pictures(layout.evaluation, m, prompts) for m in ("tuned", "pretrained"))
    panel = AppealPanel(section.num_raters, section.seed, section.repeat_share)
    votes = panel.vote(tuned, pretrained, prompts["key"].tolist(), "appeal")
    return Ballots(votes, digest_pairs(layout, "appeal", prompts))


def faithfulness_ballots(layout: Layout, section: FaithfulnessVotes) -> Ballots:
    """On the prompts that name a subject. ValueError for more raters than the panel has."""
    from emu_models.evaluation.faithfulness import RATERS, judge_pairs
    from emu_models.evaluation.judge import load_faithfulness_judge

    if section.num_raters > len(RATERS):
        raise ValueError(f"faithfulness_votes.num_raters is {section.num_raters}; the panel has {len(RATERS)} raters")
    prompts = read_prompts(layout, "faithfulness")
    tuned, pretrained = (read_pictures(layout.evaluation, m, prompts) for m in ("tuned", "pretrained"))
    ledger = read_ledger(layout.filtered / "ledger")
    # those that its error was measured among: what the gates turned away is no subject
    subjects = ledger.loc[ledger["first_failed_gate"].isin(["", "quota"]), "caption"]
    captions = sorted(set(subjects) | set(prompts["caption"]))
    judge, _ = load_faithfulness_judge(layout.model("faithfulness_judge"), layout.root)
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
            score=round_score(row["score_a"] - row["score_b"]),
            side_order=draw_side_order(section.seed, row["rater"], row["key"]),
        )
        for row in decisions.to_dict(orient="records")
    ]
    return Ballots(votes, digest_pairs(layout, "faithfulness", prompts))


def judge_sheet(layout: Layout) -> Image.Image:
    """Known pairs that the judge decided, wrongly decided ones first, each picture with the caption and the answers."""
    from emu_models.judge_training import KNOWN_FILE

    pairs = pd.read_parquet(layout.model("faithfulness_judge") / KNOWN_FILE)
    pairs = pairs.assign(is_right=pairs["right"] == pairs["decision"]).sort_values("is_right", kind="stable").head(20)
    if not len(pairs):
        return Image.new("RGB", (1, 1))
    keys = [key for row in pairs.itertuples() for key in (str(row.key_a), str(row.key_b))]
    labels = [text for row in pairs.itertuples() for text in (str(row.caption), f"{row.right}: {row.decision}")]
    return contact_sheet(read_images(layout.raw, keys, SHEET_TILE), labels, columns=8, tile=SHEET_TILE)


def told_error(error: Mapping[str, Any]) -> str:
    """A judge's error on known pairs (known_pairs.JudgeError) in Markdown: a sentence and a table."""
    if not error["num_pairs"]:
        return "No pair was there to test it on."
    interval = error["error"]
    told = f"Wrong: {format_percent(interval['estimate'])}, {format_span(interval)} (exact 95 % interval)."
    rows = [(right, num_right, num) for right, (num_right, num) in error["by_right"].items()]
    rows.append(("all", error["num_pairs"] - error["num_wrong"], error["num_pairs"]))
    return f"{told}\n\n{pd.DataFrame(rows, columns=['right answer', 'found', 'of']).to_markdown(index=False)}"


def report_preference(
    layout: Layout, params: Params, axis: "Axis", judged: Mapping[str, str]
) -> tuple[dict[str, float], str, Image.Image]:
    """Writes data/reports/AXIS_report from the votes of the round; returns metrics, who voted, and a plot.

    judged: asset -> md5 of what the report is made of.
    """
    from emu_data.votes.preference import position_bias, self_consistency, summarise_preference
    from emu_models.evaluation.judge import read_judge_error
    from emu_reports.page import Run
    from emu_reports.preference import picture_preference, write_preference_report

    name = f"{axis}_report"
    section = params.appeal_report if axis == "appeal" else params.faithfulness_report
    prompts = read_prompts(layout, axis)
    pictures = {m: read_pictures(layout.evaluation, m, prompts) for m in ("tuned", "pretrained")}
    recorded, items = read_votes(layout, axis), digest_pairs(layout, axis, prompts)
    votes, repeats = counted(recorded.votes, items), counted_repeats(recorded.votes, items)
    if not votes:
        raise ValueError(f"no vote in {layout.votes(axis)} is on the pictures shown now: materialise {axis}_votes")
    table = votes_to_frame(votes)
    preference = summarise_preference(table, seed=section.seed, num_resamples=section.num_bootstrap)
    agreement, bias = measure_agreement(votes), position_bias(table)
    consistency = self_consistency(table, votes_to_frame(repeats))
    metrics = {
        "num_prompts": preference.num_prompts,
        "num_prompts_won": preference.num_prompts_won,
        "num_prompts_lost": preference.num_prompts_lost,
        "num_votes": preference.num_votes,
        "num_votes_of_people": sum(vote.rater_kind == "person" for vote in votes),
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
        "win_less_lose": preference.win_less_lose.estimate,
        "win_less_lose_low": preference.win_less_lose.low,
        "win_less_lose_high": preference.win_less_lose.high,
        "sign_test_p": preference.sign_test_p,
        "left_share": bias.left_share,
        "gwet_ac1": agreement.gwet_ac1,
    }
    judge_error = read_judge_error(layout.model("faithfulness_judge")) if axis == "faithfulness" else None
    if judge_error:
        metrics |= {"num_known_pairs": judge_error["num_pairs"], "num_known_wrong": judge_error["num_wrong"]}
    folder = layout.report(name)
    page = write_preference_report(
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
        recorded.head,
        Run(params.profile, params.toy, judged),
        judge_error,
    )
    known = {metric: value for metric, value in metrics.items() if value == value}
    write_evidence(layout, name, known, judged)
    return known, page["voters"], picture_preference(axis, preference)
