"""Which assets have to be made (again), and why: so that a second `emu demo` does only what is left.

Dagster knows what it materialised, with which code version (the fingerprint of code and params) and from
which versions of the inputs; it does not look at the disk, which is asked here through `output_exists`.

The resolver behind the UI's "stale" labels is private to Dagster; 1.13.27 is pinned for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

MISSING_OUTPUT = "its output is missing"
NEVER_MADE = "never materialised"


@dataclass(frozen=True)
class StaleAsset:
    """An asset that has to be made. `reason` is for people to read."""

    key: str
    reason: str


def stale_assets(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    output_exists: Callable[[str], bool],
    grown: Callable[[str], str | None] = lambda key: None,
) -> list[StaleAsset]:
    """What is missing or made from something else than what is there now, in topological order.

    Staleness is that of direct inputs: an asset below a stale one is listed only after that one was made
    again and turned out different. So materialise the first of the list and ask again, until the list is
    empty. grown: why an asset that is up to date has something new to record all the same, None for nothing.
    """
    graph = defs.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    found = {
        key.to_user_string(): _reason(resolver, key, output_exists, grown)
        for key in graph.toposorted_asset_keys
        if graph.get(key).is_executable
    }
    return [StaleAsset(key, reason) for key, reason in found.items() if reason]


def recorded_version(instance: dg.DagsterInstance, key: str) -> str:
    """The data version that an asset was last materialised with; empty where it never was."""
    event = instance.get_latest_materialization_event(dg.AssetKey(key))
    tags = event.asset_materialization.tags if event and event.asset_materialization else None
    return (tags or {}).get("dagster/data_version", "")


def _reason(
    resolver: CachingStaleStatusResolver,
    key: dg.AssetKey,
    output_exists: Callable[[str], bool],
    grown: Callable[[str], str | None],
) -> str:
    """Why the asset is stale; empty when it is not."""
    status = resolver.get_status(key)
    if status == StaleStatus.MISSING:
        return NEVER_MADE
    if not output_exists(key.to_user_string()):
        return MISSING_OUTPUT
    if status == StaleStatus.FRESH:
        return grown(key.to_user_string()) or ""
    reasons = [
        cause.reason + (f" ({cause.dependency.asset_key.to_user_string()})" if cause.dependency else "")
        for cause in resolver.get_stale_causes(key)
    ]
    return "; ".join(dict.fromkeys(reasons))
