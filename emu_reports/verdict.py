"""What became of the candidate, in words: the front page and the summary begin with it."""

from collections.abc import Mapping
from typing import Any


def describe_verdict(registered: Mapping[str, Any] | None) -> dict[str, Any]:
    """headline; because, a sentence; reports, each with its title, whether it passed, and why; refusing ones first.

    registered: data/registered_model.json, None where nothing was registered yet.
    """
    if not registered:
        return {"headline": "No model is registered yet", "because": "No report was judged.", "reports": []}
    reports = [
        {"report": name, "title": name.removesuffix("_report"), **verdict}
        for name, verdict in registered["verdicts"].items()
    ]
    refusing = [one["title"] for one in reports if not one["passed"]]
    address = f"models:/{registered['name']}/{registered['version']}"
    if refusing:
        headline = "The candidate is refused"
        because = (
            f"{address} is registered as {registered['alias']}, since {len(refusing)} of {len(reports)} reports "
            f"refuse it: {', '.join(refusing)}."
        )
    else:
        headline = "The candidate is accepted"
        because = f"{address} is registered as {registered['alias']}, since all {len(reports)} reports allow it."
    return {"headline": headline, "because": because, "reports": sorted(reports, key=lambda one: one["passed"])}
