"""Compares two contestants side by side: rubric panels vote on pairs that no person voted on, and reports sum up the
votes.

A is the first of `comparison` in params.yaml, the candidate, and B the second. The criteria of the appeal panel are not
those that chose the curated set; the faithfulness judge is a model that filtering never used.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.formatting import format_percent, format_span
from emu_data.ledger import SOUND, read_ledger
from emu_data.shards import read_images
from emu_data.votes.agreement import measure_agreement
from emu_data.votes.items import Pair
from emu_data.votes.panels.appeal import AppealPanel
from emu_data.votes.vote import counted, counted_repeats, digest_pair, votes_to_frame
from emu_reports.sheets import contact_sheet
from emu_steps.contestants import candidate_maker, read_pictures
from emu_steps.evaluating import SHEET_TILE, known_subjects
from emu_steps.evidence import write_evidence
from emu_steps.layout import Layout
from emu_steps.params import AppealVotes, FaithfulnessVotes, Params
from emu_steps.voting import Ballots, cast_ballots, describe_deciders, read_votes, voters_of

if TYPE_CHECKING:
    from emu_reports.preference import Axis


def read_prompts(layout: Layout, axis: "Axis", comparison: tuple[str, str]) -> pd.DataFrame:
    """Read the prompts to judge. `caption` is what raters are shown: "" for appeal; for faithfulness the prompt's
    caption in the corpus, or the prompt itself.

    Raises ValueError if either contestant has no pictures.
    """
    candidate_maker(layout, comparison)
    prompts = _asked(layout)
    shown = prompts["caption"].where(prompts["caption"] != "", prompts["prompt"])
    return prompts.assign(caption=shown if axis == "faithfulness" else "")


def _asked(layout: Layout) -> pd.DataFrame:
    return pd.read_parquet(layout.evaluation / "prompts.parquet")


def digest_pairs(layout: Layout, prompts: pd.DataFrame, comparison: tuple[str, str]) -> dict[str, str]:
    """Return key -> digest of what raters are shown, for `counted`: both pictures and the caption of `read_prompts`."""
    found = {}
    for key, caption in zip(prompts["key"], prompts["caption"], strict=True):
        first, second = ((layout.evaluation / name / f"{key}.png").read_bytes() for name in comparison)
        found[key] = digest_pair(first, second, caption)
    return found


def read_pairs(layout: Layout, axis: "Axis", comparison: tuple[str, str]) -> list[Pair]:
    """Read the pairs that raters are shown, for faithfulness with the caption. Raises ValueError if either contestant
    has no pictures."""
    prompts = read_prompts(layout, axis, comparison)
    candidate, other = read_pair(layout, comparison, prompts)
    seen = digest_pairs(layout, prompts, comparison)
    return [
        Pair(key, a, b, caption, seen[key])
        for key, a, b, caption in zip(prompts["key"], candidate, other, prompts["caption"], strict=True)
    ]


def read_pair(layout: Layout, comparison: tuple[str, str], prompts: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Read both contestants' pictures, each uint8 (N, H, W, 3), in the order of the prompts."""
    first, second = comparison
    return read_pictures(layout.evaluation, first, prompts), read_pictures(layout.evaluation, second, prompts)


def appeal_ballots(layout: Layout, section: AppealVotes, comparison: tuple[str, str]) -> Ballots:
    """Return the appeal panel's votes on all prompts. Raises ValueError if either contestant has no pictures."""
    if section.voters == "people":
        return _people_alone(layout, "appeal", comparison)
    panel = AppealPanel(section.num_raters, section.seed, section.repeat_share)
    return cast_ballots(panel, read_pairs(layout, "appeal", comparison), section.voters)


def _people_alone(layout: Layout, axis: "Axis", comparison: tuple[str, str]) -> Ballots:
    return Ballots([], digest_pairs(layout, read_prompts(layout, axis, comparison), comparison), "people")


def faithfulness_ballots(layout: Layout, section: FaithfulnessVotes, comparison: tuple[str, str]) -> Ballots:
    """Return the faithfulness panel's votes on the prompts whose subject its judge knows; people can vote on all.

    Raises ValueError if params.yaml asks for more raters than the panel has, or if either contestant has no pictures.
    """
    if section.voters == "people":
        return _people_alone(layout, "faithfulness", comparison)
    from emu_models.evaluation.faithfulness import FaithfulnessPanel
    from emu_models.evaluation.judge import load_faithfulness_judge

    judge, _ = load_faithfulness_judge(layout.model("faithfulness_judge"), layout.root)
    pairs = read_pairs(layout, "faithfulness", comparison)
    subjects_of = known_subjects(_asked(layout), layout.model("faithfulness_judge"))
    known = [pair for pair, subject in zip(pairs, subjects_of, strict=True) if subject]
    ledger = read_ledger(layout.filtered / "ledger")
    # the subjects with which the judge's error was measured; captions that the gates rejected are not among them
    subjects = {*ledger.loc[ledger["first_failed_gate"].isin(SOUND), "caption"]}
    subjects.update(pair.caption for pair in known)
    votes = FaithfulnessPanel(judge, subjects, section.num_raters, section.seed).vote(known)
    return Ballots(votes, {pair.key: pair.seen for pair in pairs}, section.voters)


def judge_sheet(layout: Layout) -> Image.Image:
    """Return a contact sheet of known pairs, wrong answers first: under each pair the caption, the right answer and the
    judge's.
    """
    from emu_models.judge_training import KNOWN_FILE

    pairs = pd.read_parquet(layout.model("faithfulness_judge") / KNOWN_FILE)
    pairs = pairs.assign(is_right=pairs["right"] == pairs["decision"]).sort_values("is_right", kind="stable").head(20)
    if not len(pairs):
        return Image.new("RGB", (1, 1))
    keys = [key for row in pairs.itertuples() for key in (str(row.key_a), str(row.key_b))]
    labels = [text for row in pairs.itertuples() for text in (str(row.caption), f"{row.right}: {row.decision}")]
    return contact_sheet(read_images(layout.raw, keys, SHEET_TILE), labels, columns=8, tile=SHEET_TILE)


def describe_judge_error(error: Mapping[str, Any]) -> str:
    """Describe a judge's error on known pairs (known_pairs.JudgeError) in Markdown: a sentence and a table."""
    if not error["num_pairs"]:
        return "There were no pairs on which to test the judge."
    interval = error["error"]
    sentence = f"Wrong: {format_percent(interval['estimate'])}, {format_span(interval)} (exact 95 % interval)."
    rows = [(right, num_right, num) for right, (num_right, num) in error["by_right"].items()]
    rows.append(("all", error["num_pairs"] - error["num_wrong"], error["num_pairs"]))
    return f"{sentence}\n\n{pd.DataFrame(rows, columns=['right answer', 'found', 'of']).to_markdown(index=False)}"


def report_preference(
    layout: Layout, params: Params, axis: "Axis", judged: Mapping[str, str]
) -> tuple[dict[str, float], str, Image.Image]:
    """Write data/reports/AXIS_report from the votes of the round; return metrics, who voted in words, and a plot.

    judged: asset -> md5 of what the report is made from. If there are no votes on faithfulness, because nobody voted
    and the judge knows the subject of no prompt, the report says so. Raises ValueError if no vote is on the current
    pictures for another reason.
    """
    from emu_data.votes.preference import position_bias, self_consistency, summarise_preference
    from emu_models.evaluation.judge import read_judge_error
    from emu_reports.page import Run
    from emu_reports.preference import picture_preference, write_preference_report

    name = f"{axis}_report"
    section = params.appeal_report if axis == "appeal" else params.faithfulness_report
    comparison = params.comparison
    prompts, made_by = read_prompts(layout, axis, comparison), candidate_maker(layout, comparison)
    pictures = read_pair(layout, comparison, prompts)
    voters = voters_of(params, axis)
    recorded, items = read_votes(layout, axis, voters), digest_pairs(layout, prompts, comparison)
    votes, repeats = counted(recorded.votes, items), counted_repeats(recorded.votes, items)
    is_known = axis == "appeal" or known_subjects(_asked(layout), layout.model("faithfulness_judge")).ne("").any()
    if not votes and is_known:
        raise ValueError(f"no vote in {layout.votes(axis)} is on the current pictures: materialise {axis}_votes")
    table = votes_to_frame(votes)
    summarise = partial(summarise_preference, seed=section.seed, num_resamples=section.num_bootstrap)
    preference = summarise(table) if votes else None
    agreement, bias = measure_agreement(votes), position_bias(table)
    consistency = self_consistency(table, votes_to_frame(repeats))
    metrics: dict[str, float] = {
        "num_prompts_asked": len(prompts),
        "num_prompts": 0,
        "num_prompts_won": 0,
        "num_prompts_lost": 0,
        "num_votes": 0,
        "num_votes_of_people": 0,
    }
    if preference is not None:
        metrics |= {
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
        describe_deciders(votes, voters),
        prompts,
        comparison,
        pictures,
        agreement,
        bias,
        consistency,
        recorded.head,
        Run(params.profile, params.toy, judged),
        judge_error,
    )
    known = {metric: value for metric, value in metrics.items() if value == value}
    write_evidence(layout, name, known, judged, comparison[0], made_by)
    plot = picture_preference(axis, comparison[0], preference) if preference else Image.new("RGB", (1, 1))
    return known, page["voters"], plot
