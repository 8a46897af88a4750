"""The surroundings of a training, which do not affect its result: who listens, who may stop it, which processes share
it."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from emu_models.training.distributed import ALONE, World

MetricsSink = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Running:
    """The surroundings of a training. sink: receives the metrics of a step; picture_sink: receives a step's sheet of
    samples. stop_requested: called once per step; True stops the training. world: the processes that share it."""

    sink: MetricsSink = lambda step, metrics: None
    picture_sink: Callable[[int, Image.Image], None] = lambda step, sheet: None
    stop_requested: Callable[[], bool] = lambda: False
    world: World = ALONE


UNHEARD = Running()
