"""`emu aesthetics-head`: learn what raters chose, as a head on the image embedding that scores unseen pictures."""

from dataclasses import dataclass
from pathlib import Path

from emu_data.votes.rounds import EXPORT_NAME
from emu_data.votes.vote import Vote, counted, describe_voters, votes_to_frame
from emu_steps.layout import Layout
from emu_steps.params import Params
from emu_steps.voting import digest_pictures, read_votes, shown_to_generalists, shown_to_specialists, voters_of


@dataclass(frozen=True)
class FittedHead:
    """The fit of a head. r_squared: leave-one-out; 1 is perfect, 0 no better than the mean. voters: who voted, in
    words.
    """

    num_pictures: int
    r_squared: float
    voters: str


def fit_from_votes(layout: Layout, params: Params, out: Path) -> FittedHead:
    """Fit a head to the share of raters who kept each picture, over all recorded rounds, and write it to `out`.

    Raises ValueError if nobody has voted yet, or too few pictures have votes.
    """
    from emu_data.clip_models import find_clip
    from emu_data.shards import read_many
    from emu_data.signals import LazySample
    from emu_data.signals.aesthetics import fit_head
    from emu_data.signals.embedding import embed, shared_encoder

    shown = {"generalist": shown_to_generalists, "specialist": shown_to_specialists}
    votes: list[Vote] = []
    for name, keys_of in shown.items():
        if (layout.votes(name) / EXPORT_NAME).is_file():
            recorded = read_votes(layout, name, voters_of(params, name))
            votes += counted(recorded.votes, digest_pictures(layout, keys_of(layout)))
    if not votes:
        raise ValueError("nobody has voted yet: materialise generalist_votes first")
    table = votes_to_frame(votes)
    shares = (table["decision"] == "keep").groupby(table["key"]).mean()
    samples = read_many(layout.filtered, list(shares.index))
    weights = params.filter_ledger.signals.alignment_weights
    model = str(find_clip(weights, layout.root)) if weights else str(layout.model("alignment_model"))
    encoder = shared_encoder(model)
    embeddings = embed(encoder, [LazySample(samples[key]) for key in shares.index])
    r_squared = fit_head(embeddings, shares.to_numpy(float), out)
    return FittedHead(len(shares), r_squared, describe_voters(votes))
