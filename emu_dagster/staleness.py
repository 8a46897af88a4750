"""Which assets have to be made (again), and why: so that a second `emu demo` does only what is left.

Dagster knows what it materialised, with which code version (the fingerprint of code and params) and from
which versions of the inputs; it does not look at the disk, which is asked here through `layout_exists`.

The resolver behind the UI's "stale" labels is private to Dagster; 1.13.27 is pinned for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

MISSING_OUTPUT = "its output is missing"
NEVER_MADE = "never materialised"


@dataclass(frozen=True)
class StaleAsset:
    """An asset, or one partition of it, that has to be made. `reason` is for people to read."""

    key: dg.AssetKey
    partition: str | None
    reason: str


def stale_assets(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    layout_exists: Callable[[dg.AssetKey, str | None], bool],
) -> list[StaleAsset]:
    """What is missing or made from something else than what is there now, in topological order.

    Staleness is that of direct inputs: an asset below a stale one is listed only after that one was made
    again and turned out different. So materialise the first of the list and ask again, until the list is
    empty.

    A partitioned asset without partitions (they come with its upstream) is listed once, with partition None.
    """
    graph = defs.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    stale: list[StaleAsset] = []
    for key in graph.toposorted_asset_keys:
        if not graph.get(key).is_executable:
            continue
        partitions = _partitions(graph, key, instance)
        if not partitions:
            stale.append(StaleAsset(key, None, NEVER_MADE))
        for partition in partitions:
            reason = _reason(resolver, key, partition, layout_exists)
            if reason:
                stale.append(StaleAsset(key, partition, reason))
    return stale


def _partitions(graph: BaseAssetGraph, key: dg.AssetKey, instance: dg.DagsterInstance) -> list[str | None]:
    partitions_def = graph.get(key).partitions_def
    if partitions_def is None:
        return [None]
    return list(partitions_def.get_partition_keys(dynamic_partitions_store=instance))


def _reason(
    resolver: CachingStaleStatusResolver,
    key: dg.AssetKey,
    partition: str | None,
    layout_exists: Callable[[dg.AssetKey, str | None], bool],
) -> str:
    """Why the partition is stale; empty when it is not."""
    status = resolver.get_status(key, partition)
    if status == StaleStatus.MISSING:
        return NEVER_MADE
    if not layout_exists(key, partition):
        return MISSING_OUTPUT
    if status == StaleStatus.FRESH:
        return ""
    causes = resolver.get_stale_causes(key, partition)
    reasons = [
        cause.reason + (f" ({cause.dependency.asset_key.to_user_string()})" if cause.dependency else "")
        for cause in causes
    ]
    return "; ".join(dict.fromkeys(reasons))
