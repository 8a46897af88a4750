"""Materialises assets from the command line: the same assets, in the same Dagster instance, that the UI shows.

One Dagster run an asset and partition, in this process: what is finished stays finished when a later one breaks, and
torch is imported once. Only trainings have a process of their own.
"""

import os
import time
from collections.abc import Sequence

import dagster as dg
import psutil

from emu_dagster.definitions import defs
from emu_dagster.defs.corpus import list_shard_groups, register_shard_groups
from emu_dagster.layout import Layout, project_root
from emu_dagster.params import Params, read_params
from emu_dagster.staleness import StaleAsset, stale_assets

PROCESS_TAG = "emu/process"


class MaterializationFailed(RuntimeError):
    """An asset failed; the message is its cause in a line."""


def materialize_stale(instance: dg.DagsterInstance | None = None) -> int:
    """Materialises what is missing or out of date, in the order of the graph; returns how many runs that took."""
    instance = instance or dg.DagsterInstance.get()
    close_abandoned_runs(instance)
    num_runs = 0
    while stale := _stale(instance):
        first = stale[0]
        part = f" [{first.partition}]" if first.partition else ""
        print(f"==> {first.key.to_user_string()}{part}: {first.reason}; {len(stale) - 1} more wait", flush=True)
        materialize_one(first.key.to_user_string(), first.partition, instance)
        num_runs += 1
    if not num_runs:
        print("==> everything is up to date; nothing was done", flush=True)
    return num_runs


def materialize_named(keys: Sequence[str], instance: dg.DagsterInstance | None = None) -> None:
    """Materialises the named assets, every partition of each. ValueError names an unknown one."""
    instance = instance or dg.DagsterInstance.get()
    known = {key.to_user_string() for key in defs.resolve_all_asset_keys()}
    if unknown := sorted(set(keys) - known):
        raise ValueError(f"unknown assets: {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    close_abandoned_runs(instance)
    for key in keys:
        for partition in _partitions(key, instance):
            materialize_one(key, partition, instance)


def materialize_one(key: str, partition: str | None, instance: dg.DagsterInstance) -> None:
    """One Dagster run of one asset and its checks. Raises MaterializationFailed with the cause."""
    began = time.monotonic()
    process = psutil.Process()
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey(key)],
        partition_key=partition,
        instance=instance,
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "WARNING"}}}},
        tags={PROCESS_TAG: f"{process.pid}:{process.create_time():.0f}"},
    )
    if not result.success:
        raise MaterializationFailed(_describe(key, result))
    part = f" [{partition}]" if partition else ""
    print(f"    {key}{part} done in {time.monotonic() - began:.0f} s", flush=True)


def close_abandoned_runs(instance: dg.DagsterInstance) -> None:
    """Marks as failed the runs of this command whose process is gone: nobody else would, without a daemon."""
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        if (tag := run.tags.get(PROCESS_TAG)) and not _is_alive(tag):
            instance.report_run_failed(run, "The process that ran it is gone (killed, or the machine stopped).")
    # A killed run still holds its place in the pool, and the next training would wait for it for ever: only Dagster's
    # daemon would free it (dagster.yaml, free_slots_after_run_end_seconds), and none runs here.
    storage = instance.event_log_storage
    for run_id in storage.get_concurrency_run_ids():
        holder = instance.get_run_by_id(run_id)
        if holder is None or holder.is_finished:
            storage.free_concurrency_slots_for_run(run_id)


def _is_alive(tag: str) -> bool:
    pid, created = tag.split(":")
    try:
        return int(pid) != os.getpid() and abs(psutil.Process(int(pid)).create_time() - float(created)) < 2
    except psutil.NoSuchProcess:
        return False


def _stale(instance: dg.DagsterInstance) -> list[StaleAsset]:
    layout = Layout(project_root())
    params = read_params(layout.root / "params.yaml")
    if layout.raw.is_dir():  # shards that were there before Dagster was
        register_shard_groups(instance, layout, params)
    return stale_assets(defs, instance, lambda key, part: output_exists(layout, params, key.to_user_string(), part))


def output_exists(layout: Layout, params: Params, key: str, partition: str | None) -> bool:
    """Whether what the asset writes, or its partition of the ledger, is on disk."""
    paths = layout.outs(key)
    if key == "filter_ledger" and partition is not None:
        paths += [layout.ledger / f"{name}.parquet" for name in list_shard_groups(layout, params).get(partition, [])]
    return all(path.exists() for path in paths)


def _partitions(key: str, instance: dg.DagsterInstance) -> list[str | None]:
    if key != "filter_ledger":
        return [None]
    layout = Layout(project_root())
    return list(register_shard_groups(instance, layout, read_params(layout.root / "params.yaml")))


def _describe(key: str, result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error and error.cause:
                error = error.cause
            if error:
                if os.environ.get("EMU_DEBUG"):
                    print(event.step_failure_data.error_display_string)
                return f"{key}: {error.message.strip()}"
    return f"{key} failed; the run's page in Dagster has the log (make up)"
