"""Dagster's instance, and what it knows to have been made that dvc.lock does not."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from emu_dagster.machine.processes import one_at_a_time
from emu_dagster.resources.dvc import DvcRecord, Snapshot

INPUTS = "inputs"  # entry of a materialisation's metadata: what it was made from, as `Snapshot.describe` says it


def open_instance() -> dg.DagsterInstance:
    """The instance in DAGSTER_HOME. The first process makes its storage, others wait: two at once would break off."""
    with one_at_a_time(Path(os.environ["DAGSTER_HOME"]) / ".opening.lock", "opening Dagster's records"):
        return dg.DagsterInstance.get()


def record_missing(instance: dg.DagsterInstance, dvc: DvcRecord, keys: Sequence[str]) -> list[str]:
    """Records again, without making it, what lies on disk as Dagster knows it and dvc.lock does not; returns which.

    keys: in the order of the graph. (dvc.lock can be lost: to a `git clean`, to a kill in a version that did not keep
    it safe.) Under `dvc repro` nothing is: it decides itself what is to be made.
    """
    if os.environ.get("DVC_STAGE"):
        return []
    done = []
    for key in keys:
        event = instance.get_latest_materialization_event(dg.AssetKey(key))
        metadata = event.asset_materialization.metadata if event and event.asset_materialization else {}
        if "md5" not in metadata or INPUTS not in metadata:
            continue
        described: Any = metadata[INPUTS].value
        if dvc.record_again(Snapshot.from_description(described), str(metadata["md5"].value)):
            done.append(key)
    return done
