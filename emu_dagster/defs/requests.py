"""When a sensor asks for a run: once for what is new, again where the run failed, and not for ever."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.storage.tags import SENSOR_NAME_TAG

from emu_data.files import fingerprint

NEWS_TAG = "emu/news"  # of a run: fingerprint of what its sensor started it for
PAUSES = (0, 60, 600)  # seconds after the last run for the same before the first, second, third; chosen here


def ask(
    context: dg.SensorEvaluationContext,
    news: Mapping[str, Any],
    told: str,
    assets: Sequence[dg.AssetKey] | None = None,
) -> dg.SensorResult:
    """A request for one run of the sensor's job for `news`, or why there is none.

    news: what arrived, as JSON; empty for nothing. It must be the same at two ticks, so that nothing is taken while it
    is being written: the cursor remembers it. told: what it is, for people. assets: of the job, None for all.

    No run key is used: one would be used up by a run that fails. What is looked at are the runs that this sensor
    started: one that goes on is waited for, and after len(PAUSES) runs for the same news a person has to look.
    """
    cursor = json.dumps(news, sort_keys=True)
    if not news:
        return dg.SensorResult(skip_reason="nothing new", cursor=cursor)
    if context.cursor != cursor:
        return dg.SensorResult(skip_reason=f"{told}: waiting until nothing more arrives", cursor=cursor)
    identity = fingerprint([news])
    records = context.instance.get_run_records(dg.RunsFilter(tags={SENSOR_NAME_TAG: context.sensor_name}), limit=100)
    for record in records:
        if not record.dagster_run.is_finished:
            return dg.SensorResult(skip_reason=f"{told}: run {record.dagster_run.run_id[:8]} is at work", cursor=cursor)
    earlier = [record for record in records if record.dagster_run.tags.get(NEWS_TAG) == identity]
    if len(earlier) >= len(PAUSES):
        last = earlier[0].dagster_run
        reason = f"{told}: {len(earlier)} runs did not take it in, the last is {last.run_id[:8]} ({last.status.value})"
        return dg.SensorResult(skip_reason=f"{reason}; mend what it says and launch the job by hand", cursor=cursor)
    since = time.time() - (earlier[0].end_time or 0) if earlier else float("inf")
    if since < PAUSES[len(earlier)]:
        wait = round(PAUSES[len(earlier)] - since)
        return dg.SensorResult(skip_reason=f"{told}: the last run failed; again in {wait} s", cursor=cursor)
    request = dg.RunRequest(tags={NEWS_TAG: identity}, asset_selection=assets)
    return dg.SensorResult(run_requests=[request], cursor=cursor)
