"""Materialises assets from the command line: the same assets, in the same Dagster instance, that the UI shows.

One Dagster run an asset, in this process: what is finished stays finished when a later one breaks, and torch is
imported once. Only trainings have a process of their own.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import dagster as dg
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from emu_dagster.declarations.declared import DECLARATIONS
from emu_dagster.declarations.dvc_yaml import write_stages
from emu_dagster.declarations.staleness import StaleAsset, recorded_version, stale_assets
from emu_dagster.definitions import defs
from emu_dagster.machine.abandoned import PROCESS_TAG, close_abandoned_runs
from emu_dagster.machine.processes import describe_process, one_at_a_time
from emu_dagster.machine.surroundings import refuse_surroundings
from emu_dagster.resources.dvc import DvcRecord
from emu_dagster.resources.instance import open_instance, record_missing
from emu_data.formatting import format_duration
from emu_steps.layout import Layout, project_root


class MaterializationFailed(RuntimeError):
    """An asset failed; the message is its cause in a line."""


def materialize_stale(instance: dg.DagsterInstance | None = None) -> int:
    """Materialises what is missing or out of date, in the order of the graph; returns how many runs that took."""
    with _at_work(instance) as instance:
        num_runs = 0
        while stale := stale_now(instance):
            first = stale[0]
            print(f"==> {first.key}: {first.reason}; {len(stale) - 1} more wait", flush=True)
            materialize_one(first.key, instance)
            num_runs += 1
    if not num_runs:
        print("==> everything is up to date; nothing was done", flush=True)
    return num_runs


def materialize_named(keys: Sequence[str], upstream: bool = False, instance: dg.DagsterInstance | None = None) -> None:
    """Materialises the named assets, in the order of the graph, whether or not they are stale; with `upstream` first
    what they need, from near or far, and is missing or stale. ValueError names an unknown one, or the input that one
    lacks."""
    named = in_order(keys)
    with _at_work(instance) as instance:
        above = ancestors(named) - set(named) if upstream else set()
        while above and (stale := [one for one in stale_now(instance) if one.key in above]):
            print(f"==> {stale[0].key}: {stale[0].reason}; {len(stale) - 1} more wait above", flush=True)
            materialize_one(stale[0].key, instance)
        for key in named:
            _refuse_missing_inputs(key)
            materialize_one(key, instance)


def in_order(keys: Sequence[str]) -> list[str]:
    """The assets of these names, each once, in the order of the graph. ValueError names an unknown one."""
    known = [key.to_user_string() for key in defs.resolve_asset_graph().toposorted_asset_keys]
    if unknown := sorted(set(keys) - set(known)):
        raise ValueError(f"unknown assets: {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")
    return [key for key in known if key in keys]


def ancestors(keys: Sequence[str]) -> set[str]:
    """The assets that these are made from, directly or not."""
    graph, found, waiting = defs.resolve_asset_graph(), set[str](), list(keys)
    while waiting:
        parents = {parent.to_user_string() for parent in graph.get(dg.AssetKey(waiting.pop())).parent_keys}
        waiting += parents - found
        found |= parents
    return found


def _refuse_missing_inputs(key: str) -> None:
    layout = Layout(project_root())
    parents = [parent.to_user_string() for parent in defs.resolve_asset_graph().get(dg.AssetKey(key)).parent_keys]
    if missing := [parent for parent in in_order(parents) if not output_exists(layout, parent)]:
        raise ValueError(
            f"{key} is made from {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not there: "
            f"`emu materialize {key} --upstream` makes that first"
        )


@contextmanager
def _at_work(instance: dg.DagsterInstance | None) -> Iterator[dg.DagsterInstance]:
    """One command at a time in a project, which first puts right what a killed one left."""
    root, dvc = project_root(), DvcRecord()
    refuse_surroundings(root)
    with one_at_a_time(dvc.lock.own / "commands.lock", "at work in this project"):
        dvc.mend()
        instance = instance or open_instance()
        close_abandoned_runs(instance)
        write_stages(DECLARATIONS)
        graph = defs.resolve_asset_graph()
        for key in record_missing(instance, dvc, [key.to_user_string() for key in graph.toposorted_asset_keys]):
            print(f"==> {key}: recorded in dvc.lock again; it was made before and is unchanged", flush=True)
        yield instance


def materialize_one(key: str, instance: dg.DagsterInstance) -> None:
    """One Dagster run of one asset and its checks. Raises MaterializationFailed with the cause."""
    began = time.monotonic()
    job = defs.resolve_implicit_global_asset_job_def()
    # without an origin Dagster's timeline leaves a run out, and its page cannot launch it again
    create_run = partial(instance.create_run_for_job, remote_job_origin=origin_of(job.name))
    with patch.object(instance, "create_run_for_job", create_run):
        result = job.execute_in_process(
            asset_selection=[dg.AssetKey(key)],
            instance=instance,
            raise_on_error=False,
            # an error is told by MaterializationFailed; Dagster's console would add the traceback
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={PROCESS_TAG: describe_process()},
        )
    for entry in instance.all_logs(result.run_id):
        if entry.level == logging.WARNING:
            print(f"    {key}: {entry.user_message}", flush=True)
    if not result.success:
        raise MaterializationFailed(_describe(key, result))
    print(f"    {key} done in {format_duration(time.monotonic() - began)}", flush=True)


def origin_of(job_name: str) -> RemoteJobOrigin:
    """Where Dagster's page finds the job: in the code location of workspace.yaml."""
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name="emu_dagster.definitions")
    location = ManagedGrpcPythonEnvCodeLocationOrigin(loadable_target_origin=target, location_name="emu")
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME), job_name)


def stale_now(instance: dg.DagsterInstance) -> list[StaleAsset]:
    """What of the project's graph is missing or out of date, in the order of the graph."""
    from emu_steps.voting import grown

    layout = Layout(project_root())
    return stale_assets(
        defs,
        instance,
        lambda key: output_exists(layout, key),
        lambda key: grown(layout, key, recorded_version(instance, key)),
    )


def output_exists(layout: Layout, key: str) -> bool:
    """Whether what the asset writes is on disk; of the ledger, a part for each shard."""
    is_there = all((layout.root / out).exists() for out in DECLARATIONS[key].outs)
    if key == "filter_ledger" and is_there:
        from emu_data.shards import list_shards

        return all((layout.ledger / f"{shard.stem}.parquet").is_file() for shard in list_shards(layout.raw))
    return is_there


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
