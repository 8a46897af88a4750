"""A linear probe: which pictures of a queue are like those that people kept, by their embeddings.

Logistic regression with balanced class weights. A linear model over fixed features, retrained from nothing each time,
is the default of ASReview 3 (there a linear SVM); the loss of this one does not depend on the order of the votes.
`make bench NAME=harvest` compares the two (docs/log.md, 2026-11-27).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CHUNK = 8192  # embeddings that are scored at a time, 16 MiB at 512 dimensions; chosen here
C = 3.0  # inverse strength of the penalty, over the dimensions, for features of mean square 1; chosen here
MAX_ITERATIONS = 200  # of L-BFGS; it takes 20 to 80 here


@dataclass(frozen=True, eq=False)
class Probe:
    """score = embedding · weights + bias, higher for what is more like the kept. weights: float32 (D,)."""

    weights: np.ndarray
    bias: float

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the scores of embeddings (N, D), float32 (N,). They may lie on disk: CHUNK rows are read at a time."""
        parts = [
            np.asarray(embeddings[start : start + CHUNK], np.float32) @ self.weights
            for start in range(0, len(embeddings), CHUNK)
        ]
        return np.concatenate([*parts, np.empty(0, np.float32)]) + np.float32(self.bias)


def fit_probe(embeddings: np.ndarray, labels: Mapping[int, bool]) -> Probe:
    """Return the probe of some labels.

    It depends on nothing but its arguments, and not on the order of the labels, so that it may be computed in another
    thread or process while people vote.

    Args:
        embeddings: (N, D), of all items.
        labels: row -> whether it was kept; both answers must occur.

    Raises ValueError for labels of one class.
    """
    from sklearn.linear_model import LogisticRegression

    rows = np.array(sorted(labels), dtype=np.int64)
    kept = np.array([labels[row] for row in rows.tolist()], dtype=bool)
    if not len(rows) or kept.all() or not kept.any():
        raise ValueError(f"{int(kept.sum())} of {len(rows)} labels are keepers; a probe needs both kinds")
    x = np.asarray(embeddings[rows], np.float32)
    centre = x.mean(axis=0)
    x = x - centre
    # one scale for all dimensions: the encoder's own proportions between them stay
    scale = float(np.sqrt(np.square(x).mean())) or 1.0
    model = LogisticRegression(C=C / x.shape[1], class_weight="balanced", max_iter=MAX_ITERATIONS).fit(x / scale, kept)
    weights = (model.coef_[0] / scale).astype(np.float32)
    return Probe(weights, float(model.intercept_[0]) - float(centre @ weights))
