"""Dagster's instance; and recording again what it knows was made if dvc.lock does not."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from emu_dagster.machine.processes import one_at_a_time
from emu_dagster.resources.dvc import DvcRepo, Snapshot

INPUTS = "inputs"  # entry of a materialisation's metadata: what it was made from, as `Snapshot.describe` returns it


def open_instance() -> dg.DagsterInstance:
    """Open the instance in DAGSTER_HOME. The first process creates its storage; others wait, because two at once would
    fail.
    """
    with one_at_a_time(Path(os.environ["DAGSTER_HOME"]) / ".opening.lock", "opening Dagster's records"):
        return dg.DagsterInstance.get()


def last_materializations(instance: dg.DagsterInstance, keys: Sequence[str]) -> dict[str, dg.EventLogEntry]:
    """Return asset -> its last materialisation, for those that were ever materialised, with one query."""
    entries = [record.asset_entry for record in instance.get_asset_records([dg.AssetKey(key) for key in keys])]
    found = {entry.asset_key.to_user_string(): entry.last_materialization for entry in entries}
    return {key: event for key, event in found.items() if event}


def recorded_version(instance: dg.DagsterInstance, key: str) -> str:
    """Return the data version of an asset's last materialisation; empty if there is none."""
    event = instance.get_latest_materialization_event(dg.AssetKey(key))
    tags = event.asset_materialization.tags if event and event.asset_materialization else None
    return (tags or {}).get("dagster/data_version", "")


def record_missing(instance: dg.DagsterInstance, dvc: DvcRepo, keys: Sequence[str]) -> list[str]:
    """Record again, without making them, the outputs on disk that Dagster knows and dvc.lock does not; return their
    assets. (dvc.lock can be lost, for example by `git clean`.)

    keys: in the order of the graph. Nothing is done under `dvc repro`, which itself decides what to make.
    """
    if os.environ.get("DVC_STAGE"):
        return []
    done, events = [], last_materializations(instance, keys)
    for key in keys:
        event = events.get(key)
        metadata = event.asset_materialization.metadata if event and event.asset_materialization else {}
        if "md5" not in metadata or INPUTS not in metadata:
            continue
        described: Any = metadata[INPUTS].value
        if dvc.record_again(Snapshot.from_description(described), str(metadata["md5"].value)):
            done.append(key)
    return done
