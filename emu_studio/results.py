"""What a comparison has shown so far, and whether a lead may see it already.

Who looks at a fixed interval after each prompt and stops when it suits sees a difference that is not there in three of
ten rounds. So a plan that names a number of prompts hides all until that many have their votes, and then shows just
those; a plan that names none shows a confidence sequence, which may be looked at at any time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from emu_data.votes.intervals import Interval
from emu_data.votes.preference import share_by_prompt, summarise_preference
from emu_data.votes.sequences import anytime_mean
from emu_data.votes.vote import counted, votes_to_frame
from emu_studio.records import Record


@dataclass(frozen=True)
class Result:
    """How A fares against B on `num_prompts` prompts. win, lose: per cent of the votes, prompts weighted alike;
    win_less_lose: prompts won less prompts lost, in points of all prompts, as in emu_data.votes.preference. is_anytime:
    the intervals hold at whatever time one looks, else for this number of prompts.
    """

    num_prompts: int
    win: Interval
    lose: Interval
    win_less_lose: Interval
    is_anytime: bool


def finished_prompts(record: Record) -> list[str]:
    """Return the prompts all of whose pairs have their votes, in the order in which they got the last one."""
    plan = record.round.plan
    last = {(w.vote.rater, w.vote.key): index for index, w in enumerate(record.words) if not w.vote.is_repeat}
    indices: dict[str, list[int]] = {}
    for vote in counted(record.votes, record.shown):
        indices.setdefault(vote.key, []).append(last[vote.rater, vote.key])
    done: dict[str, int] = {}
    waiting: set[str] = set()
    for item in record.items:
        own = sorted(indices.get(item.keys[0], []))
        if len(own) < plan.raters_per_item:
            waiting.add(item.prompt)
        else:
            done[item.prompt] = max(done.get(item.prompt, 0), own[plan.raters_per_item - 1])
    return sorted(done.keys() - waiting, key=done.__getitem__)


def is_hidden(record: Record) -> bool:
    """Whether the plan hides what the votes say until more prompts have their votes: of a closed round nothing is."""
    plan = record.round.plan
    if not plan.is_pairs or plan.planned_prompts is None or record.round.closed is not None:
        return False
    return len(finished_prompts(record)) < plan.planned_prompts


def result_of(record: Record) -> Result | None:
    """Return what the comparison shows; None while it is hidden, or nothing is finished.

    Of a plan with a number, that of the first so many prompts: what comes after is no part of what was planned.
    """
    plan = record.round.plan
    if not plan.is_pairs or is_hidden(record):
        return None
    prompts = finished_prompts(record)[: plan.planned_prompts]
    if not prompts:
        return None
    among = set(prompts)
    prompt_of = {item.keys[0]: item.prompt for item in record.items if item.prompt in among}
    votes = votes_to_frame([vote for vote in counted(record.votes, record.shown) if vote.key in prompt_of])
    if plan.planned_prompts is None:
        return _anytime(votes, prompt_of, prompts)
    found = summarise_preference(votes, prompt_of, seed=plan.seed)
    return Result(len(prompts), found.win, found.lose, found.win_less_lose, is_anytime=False)


def _anytime(votes: pd.DataFrame, prompt_of: Mapping[str, str], prompts: list[str]) -> Result:
    shares = share_by_prompt(votes, prompt_of).loc[prompts]
    won, lost = shares["A"].to_numpy(), shares["B"].to_numpy()
    less = anytime_mean((1 + np.sign(won - lost)) / 2)
    return Result(
        len(prompts),
        _scaled(anytime_mean(won), 100),
        _scaled(anytime_mean(lost), 100),
        _scaled(less, 200, -100),
        is_anytime=True,
    )


def _scaled(interval: Interval, factor: float, shift: float = 0.0) -> Interval:
    return Interval(*(factor * end + shift for end in (interval.estimate, interval.low, interval.high)))
