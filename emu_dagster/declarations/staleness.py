"""Which assets must be made (again), and why, so that a second `emu demo` does only what is left.

Dagster knows what it materialised, with which code version (the fingerprint of code and params) and from which versions
of the inputs. It does not check the disk; `output_exists` does that here.

The resolver behind the "stale" labels on Dagster's page is private to Dagster, so Dagster is pinned to 1.13.27.
"""

from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.event_log.base import AssetRecord

MISSING_OUTPUT = "its output is missing"
NEVER_MADE = "never materialised"


@dataclass(frozen=True)
class StaleAsset:
    """An asset that must be made. reason: why, for people to read."""

    key: str
    reason: str


def stale_assets(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    output_exists: Callable[[str], bool],
    grown: Callable[[str], str | None] = lambda key: None,
) -> list[StaleAsset]:
    """Return the assets that are missing, or were made from something other than the current inputs, in topological
    order.

    Staleness depends only on direct inputs: an asset downstream of a stale one is listed only after that one was made
    again with a different result. So materialise the first of the list and call this again, until the list is empty.
    grown: returns why an asset that is up to date still has something new to record, None if it has not.
    """
    graph = defs.resolve_asset_graph()
    context = LoadingContextForTest(instance)
    AssetRecord.prepare(context, graph.toposorted_asset_keys)  # all in one query, not one per asset
    resolver = CachingStaleStatusResolver(instance, graph, context)
    found = {
        key.to_user_string(): _reason(resolver, key, output_exists, grown)
        for key in graph.toposorted_asset_keys
        if graph.get(key).is_executable
    }
    return [StaleAsset(key, reason) for key, reason in found.items() if reason]


def _reason(
    resolver: CachingStaleStatusResolver,
    key: dg.AssetKey,
    output_exists: Callable[[str], bool],
    grown: Callable[[str], str | None],
) -> str:
    """Return why the asset is stale; empty if it is not."""
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
