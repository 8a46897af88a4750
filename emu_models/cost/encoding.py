"""Whether encoding pictures and captions once, into a cache, is cheaper than encoding them whenever a step reads them.

A cache saves the encoding of every pass but the first and costs storage for as long as the training takes. A training
with at most one pass gains nothing from it.
"""

from dataclasses import dataclass

from emu_models.cost.planning import Cluster, DataPlan, TrainingPlan

DOLLARS_PER_GB_MONTH = 0.023  # object storage, as assumed in docs/scale.md
DAYS_PER_MONTH = 365 / 12


@dataclass(frozen=True)
class Encoding:
    """What both ways cost in dollars beyond encoding every row once: storage of the cache until the training ends, and
    encoding rows again in later passes."""

    cached: float
    on_the_fly: float

    @property
    def cheaper(self) -> str:
        """The value of a training's `encode` that costs less."""
        return "cached" if self.cached < self.on_the_fly else "on_the_fly"


def compare_encodings(cluster: Cluster, training: TrainingPlan, data: DataPlan) -> Encoding:
    """Compare the two ways for a training on a cluster."""
    again = data.encode_flops * (max(data.num_passes, 1.0) - 1)
    days = training.days + cluster.days(data.encode_flops, training.num_gpus)
    gigabytes = (data.moments_bytes + data.captions_bytes) / 1e9
    return Encoding(
        cached=gigabytes * DOLLARS_PER_GB_MONTH * days / DAYS_PER_MONTH,
        on_the_fly=cluster.dollars(cluster.days(again, training.num_gpus), training.num_gpus),
    )
