"""What a training runs among, none of which decides its result: who listens, who may stop it, with whom it trains."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from emu_models.training.distributed import ALONE, World

MetricsSink = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Running:
    """sink: hears the metrics of a step; picture_sink: a step's sheet of samples. stop_requested: asked once a step."""

    sink: MetricsSink = lambda step, metrics: None
    picture_sink: Callable[[int, Image.Image], None] = lambda step, sheet: None
    stop_requested: Callable[[], bool] = lambda: False
    world: World = ALONE


UNHEARD = Running()
