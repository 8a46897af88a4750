"""Whether the candidate was accepted, in words, as shown at the top of the front page and of the summary."""

from collections.abc import Mapping
from typing import Any


def describe_verdict(registered: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `headline`; `because`, a sentence; and `reports`, each with its title, whether it passed and why, refusing
    reports first.

    registered: the content of data/registered_model.json, None if nothing has been registered.
    """
    if not registered:
        return {"headline": "No model is registered yet", "because": "No report has been judged.", "reports": []}
    reports = [
        {"report": name, "title": name.removesuffix("_report"), **verdict}
        for name, verdict in registered["verdicts"].items()
    ]
    refusing = [one["title"] for one in reports if not one["passed"]]
    address = f"models:/{registered['name']}/{registered['version']}"
    if refusing:
        headline = "The candidate is refused"
        because = (
            f"{address} is registered as {registered['alias']}, because {len(refusing)} of {len(reports)} reports "
            f"refuse it: {', '.join(refusing)}."
        )
    else:
        headline = "The candidate is accepted"
        because = f"{address} is registered as {registered['alias']}, because all {len(reports)} reports allow it."
    return {"headline": headline, "because": because, "reports": sorted(reports, key=lambda one: one["passed"])}
