"""What a report leaves for the gates: data/reports/NAME/metrics.json, its numbers and the md5 of what was judged.

A verdict is about the models and the judge that it was made from. Where these are others by now, or the file is missing
or older than what is asked of it, there is no evidence, which is said and is no pass.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from emu_data.files import write_json
from emu_steps.layout import Layout

METRICS_FILE = "metrics.json"
JUDGED = "judged"  # asset -> md5
MODEL_ASSETS = ("quality_tuned", "pretrained_full")  # whose pictures evaluation_images has


class NoEvidence(ValueError):
    """A report says nothing of the model that is to be judged; the message says why, and what to do."""


def write_evidence(layout: Layout, name: str, metrics: Mapping[str, float], judged: Mapping[str, str]) -> None:
    """Writes metrics.json into the folder of a report that is there."""
    write_json(layout.report(name) / METRICS_FILE, {**metrics, JUDGED: dict(judged)})


def read_evidence(layout: Layout, name: str, digest_of: Callable[[str], str | None]) -> dict[str, Any]:
    """The numbers of a report that is about what is there now. digest_of: asset -> the md5 that DVC has recorded.

    Raises NoEvidence where the report is missing, does not say what it judged, or judged something else.
    """
    path = layout.report(name) / METRICS_FILE
    shown = path.relative_to(layout.root)
    if not path.is_file():
        raise NoEvidence(f"{shown} is missing; materialise {name}")
    found = json.loads(path.read_text())
    judged = found.pop(JUDGED, {})
    if "quality_tuned" not in judged:
        raise NoEvidence(f"{shown} does not say which model it judged; materialise evaluation_images and {name} again")
    for asset, md5 in judged.items():
        now = digest_of(asset)
        if now != md5:
            what = f"evaluation_images and {name}" if asset in MODEL_ASSETS else name
            told = now[:8] if now else "not recorded"
            raise NoEvidence(f"{shown} was made of {asset} {md5[:8]}, which is {told} now; materialise {what} again")
    return found
