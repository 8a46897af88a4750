"""Materialises assets from the command line: the same assets, in the same Dagster instance, that the UI shows.

Each asset gets its own Dagster run, in this process: what is finished stays finished if a later asset fails, and torch
is imported once. Only trainings have a process of their own.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.execution.api import execute_run
from dagster._core.execution.job_execution_result import JobExecutionResult
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from emu_dagster.declarations.declared import DECLARATIONS, makers_of_outs
from emu_dagster.declarations.dvc_yaml import write_stages
from emu_dagster.declarations.staleness import StaleAsset, stale_assets
from emu_dagster.definitions import defs
from emu_dagster.machine.abandoned import PROCESS_TAG, close_abandoned_runs
from emu_dagster.machine.processes import describe_process, one_at_a_time
from emu_dagster.machine.surroundings import refuse_surroundings
from emu_dagster.resources.dvc import DvcRepo
from emu_dagster.resources.instance import open_instance, record_missing, recorded_version
from emu_dagster.resources.mlflow import MlflowTracking
from emu_data.formatting import format_duration
from emu_steps.brought import check_brought
from emu_steps.layout import Layout, project_root
from emu_steps.needs import find_few
from emu_steps.params import read_params

# Dagster puts an error's class before its message; it is removed from errors whose messages are written for users.
FOR_PEOPLE = re.compile(r"^(dagster[\w.]*\.Failure|ValueError|RuntimeError|emu_[\w.]+): ")


class MaterializationFailed(RuntimeError):
    """An asset failed; the message is the cause, on one line."""


def materialize_stale(instance: dg.DagsterInstance | None = None) -> int:
    """Materialise what is missing or out of date, in the order of the graph; return the number of runs."""
    with _at_work(instance) as instance:
        num_runs = 0
        while stale := stale_now(instance):
            first = stale[0]
            refuse_unfit([one.key for one in stale])
            _refuse_shortages({one.key for one in stale})
            print(f"==> {first.key}: {first.reason}; {len(stale) - 1} more to make", flush=True)
            materialize_one(first.key, instance)
            num_runs += 1
    if not num_runs:
        print("==> everything is up to date; nothing was done", flush=True)
    return num_runs


def materialize_named(keys: Sequence[str], upstream: bool = False, instance: dg.DagsterInstance | None = None) -> None:
    """Materialise the named assets, in the order of the graph, whether or not they are stale; with `upstream`, first
    everything upstream of them that is missing or stale.

    Raises ValueError if an asset is unknown, or if one lacks an input.
    """
    named = in_order(keys)
    with _at_work(instance) as instance:
        above = ancestors(named) - set(named) if upstream else set()
        refuse_unfit([*above, *named])
        while above and (stale := [one for one in stale_now(instance) if one.key in above]):
            _refuse_shortages({one.key for one in stale})
            print(f"==> {stale[0].key}: {stale[0].reason}; {len(stale) - 1} more to make upstream", flush=True)
            materialize_one(stale[0].key, instance)
        for key in named:
            _refuse_missing_inputs(key)
            materialize_one(key, instance)


def refuse_unfit(keys: Sequence[str]) -> None:
    """Raise ValueError, before anything is made, if what the user provided for one of these assets is not there or
    cannot be read.
    """
    layout = Layout(project_root())
    check_brought(layout, read_params(layout.root / "params.yaml"), keys, makers_of_outs(layout))


def _refuse_shortages(stale: set[str]) -> None:
    """Raise ValueError if any of these assets has too few rows: all such assets at once, before another one is made.
    An asset downstream of a stale one may have more by the time that it is made.
    """
    layout = Layout(project_root())
    params = read_params(layout.root / "params.yaml")
    ready = [key for key in in_order(sorted(stale)) if not ancestors([key]) & stale]
    if shortages := [few for key in ready if (few := find_few(layout, params, key))]:
        raise ValueError("; ".join(shortages))


def in_order(keys: Sequence[str]) -> list[str]:
    """Return the assets with these names, each once, in the order of the graph. Raises ValueError if one is unknown."""
    known = [key.to_user_string() for key in defs.resolve_asset_graph().toposorted_asset_keys]
    if unknown := sorted(set(keys) - set(known)):
        raise ValueError(f"unknown assets: {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
    return [key for key in known if key in keys]


def ancestors(keys: Sequence[str]) -> set[str]:
    """Return the assets that these are made from, directly or not."""
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
            f"{key} is made from {', '.join(missing)}, which {'does' if len(missing) == 1 else 'do'} not exist yet: "
            f"`emu materialize {key} --upstream` first makes what is missing"
        )


@contextmanager
def _at_work(instance: dg.DagsterInstance | None) -> Iterator[dg.DagsterInstance]:
    """Let one command at a time work in a project; first repair what a killed one left. Yields Dagster's instance."""
    root, dvc = project_root(), DvcRepo()
    refuse_surroundings(root)
    with one_at_a_time(dvc.lock.own / "commands.lock", "at work in this project"):
        dvc.repair()
        instance = instance or open_instance()
        close_abandoned_runs(instance)
        MlflowTracking().settle(instance)
        write_stages(DECLARATIONS)
        graph = defs.resolve_asset_graph()
        for key in record_missing(instance, dvc, [key.to_user_string() for key in graph.toposorted_asset_keys]):
            print(f"==> {key}: made before and unchanged; recorded in dvc.lock again", flush=True)
        yield instance


def materialize_one(key: str, instance: dg.DagsterInstance) -> None:
    """Run one asset and its checks as one Dagster run. Raises MaterializationFailed with the cause."""
    began = time.monotonic()
    selected = [dg.AssetKey(key)]
    job = defs.resolve_implicit_global_asset_job_def().as_ephemeral_job({}, {}, asset_selection=selected)
    run = instance.create_run_for_job(
        job,
        # MaterializationFailed reports an error; Dagster's console would add the traceback
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        tags={PROCESS_TAG: describe_process()},
        asset_selection=frozenset(selected),
        # without an origin, Dagster's timeline omits a run, and its page cannot launch it again
        remote_job_origin=origin_of(job.name),
    )
    result = execute_run(InMemoryJob(job), run, instance)  # execute_in_process takes no origin
    for entry in instance.all_logs(result.run_id):
        if entry.level == logging.WARNING:
            print(f"    {key}: {entry.user_message}", flush=True)
    if not result.success:
        raise MaterializationFailed(_describe(key, result))
    print(f"    {key} done in {format_duration(time.monotonic() - began)}", flush=True)


def origin_of(job_name: str) -> RemoteJobOrigin:
    """Return the origin by which Dagster's page finds the job: the code location of workspace.yaml."""
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name="emu_dagster.definitions")
    location = ManagedGrpcPythonEnvCodeLocationOrigin(loadable_target_origin=target, location_name="emu")
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME), job_name)


def stale_now(instance: dg.DagsterInstance) -> list[StaleAsset]:
    """Return the assets of the project that are missing or out of date, in the order of the graph."""
    from emu_data.refs import changed_references
    from emu_steps.voting import grown, grows

    layout = Layout(project_root())

    def has_grown(key: str) -> str | None:
        if key == "raw_corpus":
            with DvcRepo().digesting() as digest:
                changed = changed_references(layout.raw, digest)
            return f"{changed[0]} was changed since it was registered" if changed else None
        # only what people add to grows; Dagster need not be read for other assets
        return grown(layout, key, recorded_version(instance, key)) if grows(key) else None

    return stale_assets(defs, instance, lambda key: output_exists(layout, key), has_grown)


def output_exists(layout: Layout, key: str) -> bool:
    """Return whether the asset's outputs are on disk; for the ledger, one part per shard."""
    is_there = all((layout.root / out).exists() for out in DECLARATIONS[key].outs)
    if key == "filter_ledger" and is_there:
        from emu_data.shards import list_shards

        return all((layout.ledger / f"{shard.stem}.parquet").is_file() for shard in list_shards(layout.raw))
    return is_there


def _describe(key: str, result: JobExecutionResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error and error.cause:
                error = error.cause
            if error:
                if os.environ.get("EMU_DEBUG"):
                    print(event.step_failure_data.error_display_string)
                return f"{key}: {FOR_PEOPLE.sub('', error.message.strip()).removeprefix(f'{key}: ')}"
    return f"{key} failed; the log is on the run's page in Dagster (`make up`)"
