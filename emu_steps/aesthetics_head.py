"""`emu aesthetics-head`: what raters chose, as a head on the image embedding that scores pictures nobody has seen."""

from dataclasses import dataclass
from pathlib import Path

from emu_data.votes.rounds import EXPORT_NAME
from emu_data.votes.vote import Vote, counted, describe_voters, votes_to_frame
from emu_steps.layout import Layout
from emu_steps.params import Params
from emu_steps.voting import digest_pictures, read_votes, shown_to_generalists, shown_to_specialists


@dataclass(frozen=True)
class FittedHead:
    """r_squared: leave-one-out, 1 is perfect, 0 no better than the mean. voters: whose votes, in words."""

    num_pictures: int
    r_squared: float
    voters: str


def fit_from_votes(layout: Layout, params: Params, out: Path) -> FittedHead:
    """Fit a head to the share of raters who kept each picture, over the rounds that were recorded, and write it to
    `out`.

    ValueError where nobody has voted yet, or too few.
    """
    from emu_data.shards import read_many
    from emu_data.signals import Record
    from emu_data.signals.aesthetics import fit_head
    from emu_data.signals.embedding import embed, shared_encoder

    shown = {"generalist": shown_to_generalists, "specialist": shown_to_specialists}
    votes: list[Vote] = []
    for name, keys_of in shown.items():
        if (layout.votes(name) / EXPORT_NAME).is_file():
            votes += counted(read_votes(layout, name).votes, digest_pictures(layout, keys_of(layout)))
    if not votes:
        raise ValueError("nobody has voted yet: materialise generalist_votes first")
    table = votes_to_frame(votes)
    shares = (table["decision"] == "keep").groupby(table["key"]).mean()
    samples = read_many(layout.filtered, list(shares.index))
    encoder = shared_encoder(params.filter_ledger.signals.alignment_weights or str(layout.model("alignment_model")))
    embeddings = embed(encoder, [Record(samples[key]) for key in shares.index])
    r_squared = fit_head(embeddings, shares.to_numpy(float), out)
    return FittedHead(len(shares), r_squared, describe_voters(votes))
