"""What a report writes for the gates: data/reports/NAME/metrics.json, with its numbers and the md5 of what it judged.

A verdict holds only for the models and the judge that it was made from. If any of these has changed, or the file is
missing or too old, there is no evidence: the gate says so and does not pass.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from emu_data.files import write_json
from emu_steps.contestants import DRAWN_FILE, read_drawn
from emu_steps.layout import Layout

METRICS_FILE = "metrics.json"
JUDGED = "judged"  # asset -> md5
CANDIDATE = "candidate"  # the name of the comparison's first contestant
MADE_BY = "made_by"  # the asset or address of its model
JUDGED_ASSET = "quality_tuned"  # what the gates are about
NUM_NEAR, NUM_PICTURES = "num_near_copies_", "num_pictures_"  # metrics of the automatic report, by contestant


class NoEvidence(ValueError):
    """A report says nothing about the model that is to be judged; the message says why, and what to do."""


def write_evidence(
    layout: Layout, name: str, metrics: Mapping[str, float], judged: Mapping[str, str], candidate: str, made_by: str
) -> None:
    """Write metrics.json into the folder of a finished report. candidate, made_by: the first contestant of its
    comparison, and what made it.
    """
    facts = {CANDIDATE: candidate, MADE_BY: made_by, JUDGED: dict(judged)}
    write_json(layout.report(name) / METRICS_FILE, {**metrics, **facts})


def read_evidence(layout: Layout, name: str, digest_of: Callable[[str], str | None]) -> dict[str, Any]:
    """Read the numbers of a report on the current quality_tuned, and the name of the candidate. digest_of: asset -> the
    md5 that DVC has recorded.

    Raises NoEvidence if the report is missing, does not say what it judged, or judged something else.
    """
    path = layout.report(name) / METRICS_FILE
    shown = path.relative_to(layout.root)
    if not path.is_file():
        raise NoEvidence(f"{shown} is missing; materialise {name}")
    found = json.loads(path.read_text())
    judged, made_by = found.pop(JUDGED, {}), found.pop(MADE_BY, None)
    if made_by is None or (made_by == JUDGED_ASSET and JUDGED_ASSET not in judged):
        raise NoEvidence(f"{shown} does not say which model it judged; materialise evaluation_images and {name} again")
    if made_by != JUDGED_ASSET:
        raise NoEvidence(
            f"{shown} is about {made_by}, but only {JUDGED_ASSET} is registered; name its contestant first in "
            f"`comparison` of params.yaml and materialise {name} again"
        )
    has_pictures = (layout.evaluation / DRAWN_FILE).is_file()
    drawn = read_drawn(layout).judged if has_pictures else {}
    for asset, md5 in judged.items():
        now = digest_of(asset)
        if now != md5:
            what = f"evaluation_images and {name}" if asset == JUDGED_ASSET or asset in drawn else name
            current = now[:8] if now else "not recorded"
            raise NoEvidence(
                f"{shown} was made from {asset} {md5[:8]}, which is now {current}; materialise {what} again"
            )
    return found
