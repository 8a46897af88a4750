"""ASReview's own simulation on features and labels, in ASReview's environment: `_asreview_loop.py IN.npz OUT.npy`.

IN: features float32 (N, D), labels int (N,), first int (P,): records labelled at the start, batch int, num_needed int:
relevant records after which it ends. OUT: record numbers in the order in which they were labelled. The learner is
ASReview 3's for embeddings ("elas_l2", asreview/models/models.py), but for its encoder: greedy, a linear SVM.
"""

import sys

import numpy as np
from asreview.learner import ActiveLearningCycle
from asreview.models.balancers import Balanced
from asreview.models.classifiers import SVM
from asreview.models.queriers import Max
from asreview.simulation.simulate import Simulate


class Enough:
    """Ends the simulation when so many relevant records are labelled."""

    name = "enough"

    def __init__(self, num_needed: int):
        self.num_needed = num_needed

    def stop(self, results, labels) -> bool:
        return results["label"].sum() >= self.num_needed or len(results) == len(labels)


def main(given: str, out: str) -> None:
    with np.load(given) as data:
        features, labels = data["features"], data["labels"]
        first, batch, num_needed = data["first"], int(data["batch"]), int(data["num_needed"])
    learner = ActiveLearningCycle(
        querier=Max(),
        classifier=SVM(loss="squared_hinge", C=0.106, max_iter=5000, random_state=0),
        balancer=Balanced(ratio=9.707),
        n_query=batch,
    )
    simulation = Simulate(features, labels, learner, Enough(num_needed), skip_transform=True, print_progress=False)
    simulation.label(first)
    simulation.review()
    np.save(out, simulation._results["record_id"].to_numpy(np.int64))


if __name__ == "__main__":
    main(*sys.argv[1:])
