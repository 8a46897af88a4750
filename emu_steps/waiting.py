"""What is shown in each round of votes, and which rounds wait for people as params.yaml lets nobody else decide."""

from emu_data.votes.plans import digest_items, read_plans
from emu_data.votes.rounds import open_log
from emu_data.votes.vote import counted
from emu_steps.layout import Layout
from emu_steps.params import Params
from emu_steps.voting import (
    ROUNDS,
    admitted,
    digest_pictures,
    shown_to_generalists,
    shown_to_specialists,
    voters_of,
)


def shown_items(layout: Layout, params: Params, name: str) -> dict[str, str]:
    """Return key -> digest of what raters of a round are shown, for `counted`. Raises ValueError or FileNotFoundError
    if it is not made yet."""
    if name in ("generalist", "specialist"):
        keys = shown_to_generalists(layout) if name == "generalist" else shown_to_specialists(layout)
        return digest_pictures(layout, keys)
    from emu_steps.judging import digest_pairs, read_prompts

    prompts = read_prompts(layout, "appeal" if name == "appeal" else "faithfulness", params.comparison)
    return digest_pairs(layout, prompts, params.comparison)


def find_waiting(layout: Layout, params: Params, asset: str, studio: str) -> str | None:
    """Why the asset of a round waits for people, in one sentence; None if it does not, or for other assets. studio: the
    address at which they vote.

    It waits while a picture has no vote of a person, unless a round on just these pictures was closed in the studio:
    its stopping rule may have left some out.
    """
    name = asset.removesuffix("_votes")
    if name == asset or name not in ROUNDS or voters_of(params, name) != "people":
        return None
    try:
        items = shown_items(layout, params, name)
    except (ValueError, FileNotFoundError):  # not made yet: who reads it says so
        return None
    folder = layout.votes(name)
    if any(plan.closed and plan.items == digest_items(items) for plan in read_plans(folder)):
        return None
    log = open_log(folder)
    log.recover()
    num_left = len(items) - len({vote.key for vote in counted(admitted(log.read(), "people"), items)})
    if not num_left:
        return None
    what = "pictures" if name in ("generalist", "specialist") else "pairs of pictures"
    return (
        f"{asset}: {num_left} of {len(items)} {what} wait for people, since {asset}.voters is `people`: open the round "
        f"(emu studio open {name}), let them vote at {studio}, and close it (emu studio close {name})"
    )
