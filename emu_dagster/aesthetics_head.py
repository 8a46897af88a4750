"""`emu aesthetics-head`: what raters chose, as a head on the image embedding that scores pictures nobody has seen."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emu_dagster.layout import Layout
from emu_dagster.params import Params


@dataclass(frozen=True)
class FittedHead:
    """r_squared: leave-one-out, 1 is perfect, 0 no better than the mean. raters: "person", "rubric"."""

    num_pictures: int
    r_squared: float
    raters: tuple[str, ...]


def fit_from_votes(layout: Layout, params: Params, out: Path) -> FittedHead:
    """Fit a head to the share of raters who kept each picture, over both rounds, and write it to `out`.

    ValueError where nobody has voted yet, or too few.
    """
    from emu_data.shards import read_many
    from emu_data.signals import Record
    from emu_data.signals.aesthetics import fit_head
    from emu_data.signals.embedding import embed, shared_encoder

    logs = [folder / "votes.parquet" for folder in (layout.generalist, layout.curated)]
    tables = [pd.read_parquet(log) for log in logs if log.is_file()]
    if not tables:
        raise ValueError("nobody has voted yet: materialise generalist_selection first")
    votes = pd.concat(tables, ignore_index=True)
    shares = (votes["decision"] == "keep").groupby(votes["key"]).mean()
    samples = read_many(layout.filtered, list(shares.index))
    encoder = shared_encoder(params.filter_ledger.signals.alignment_weights or str(layout.model("alignment_model")))
    embeddings = embed(encoder, [Record(samples[key]) for key in shares.index])
    r_squared = fit_head(embeddings, shares.to_numpy(float), out)
    return FittedHead(len(shares), r_squared, tuple(sorted(set(votes["rater_kind"]))))
