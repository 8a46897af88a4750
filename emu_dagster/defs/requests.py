"""When a sensor requests a run: once for what is new, again if that run failed, and only a few times."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.storage.tags import SENSOR_NAME_TAG

from emu_data.files import fingerprint

NEWS_TAG = "emu/news"  # tag of a run: fingerprint of the news that its sensor started it for
# Seconds between the previous run for the same news and the first, second and third run; chosen here.
PAUSES = (0, 60, 600)


def ask(
    context: dg.SensorEvaluationContext,
    news: Mapping[str, Any],
    summary: str,
    assets: Sequence[dg.AssetKey] | None = None,
) -> dg.SensorResult:
    """Request one run of the sensor's job for `news`, or say why none is requested.

    news: what is new, as JSON values; empty if nothing is. A run is requested only if it is the same at two ticks, so
    that files are not read while they are being written; the cursor remembers it. summary: what is new, for people to
    read. assets: those of the job to make, None for all.

    No run key is used, because a failed run would use it up. Instead, the runs that this sensor started are checked:
    while one is in progress the sensor waits, and after len(PAUSES) runs for the same news a person must fix the cause.
    """
    cursor = json.dumps(news, sort_keys=True)
    if not news:
        return dg.SensorResult(skip_reason="nothing new", cursor=cursor)
    if context.cursor != cursor:
        return dg.SensorResult(skip_reason=f"{summary}: waiting until nothing more arrives", cursor=cursor)
    identity = fingerprint([news])
    records = context.instance.get_run_records(dg.RunsFilter(tags={SENSOR_NAME_TAG: context.sensor_name}), limit=100)
    for record in records:
        if not record.dagster_run.is_finished:
            return dg.SensorResult(
                skip_reason=f"{summary}: run {record.dagster_run.run_id[:8]} is in progress", cursor=cursor
            )
    earlier = [record for record in records if record.dagster_run.tags.get(NEWS_TAG) == identity]
    if len(earlier) >= len(PAUSES):
        last = earlier[0].dagster_run
        reason = (
            f"{summary}: {len(earlier)} runs did not process it, the last is {last.run_id[:8]} ({last.status.value})"
        )
        return dg.SensorResult(skip_reason=f"{reason}; fix the cause and launch the job by hand", cursor=cursor)
    since = time.time() - (earlier[0].end_time or 0) if earlier else float("inf")
    if since < PAUSES[len(earlier)]:
        wait = round(PAUSES[len(earlier)] - since)
        return dg.SensorResult(skip_reason=f"{summary}: the last run failed; next try in {wait} s", cursor=cursor)
    request = dg.RunRequest(tags={NEWS_TAG: identity}, asset_selection=assets)
    return dg.SensorResult(run_requests=[request], cursor=cursor)
