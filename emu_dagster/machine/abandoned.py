"""Marks runs of the `emu` command whose process is gone as failed, so that nothing waits for them."""

import dagster as dg

from emu_dagster.machine.processes import describe_process, is_alive

PROCESS_TAG = "emu/process"
UNFINISHED = [  # a process may be gone before its run has begun, or while it is being cancelled
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def close_abandoned_runs(instance: dg.DagsterInstance) -> None:
    """Mark runs of this command whose process is gone as failed: nothing else does, not even Dagster's daemon."""
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        if (tag := run.tags.get(PROCESS_TAG)) and (tag == describe_process() or not is_alive(tag)):
            instance.report_run_failed(run, "The process that ran it is gone (killed, or the machine stopped).")
    # A killed run still holds its slot in the pool, and the next training would wait for it forever: only Dagster's
    # daemon frees it (dagster.yaml, free_slots_after_run_end_seconds), and no daemon runs here.
    storage = instance.event_log_storage
    for run_id in storage.get_concurrency_run_ids():
        holder = instance.get_run_by_id(run_id)
        if holder is None or holder.is_finished:
            storage.free_concurrency_slots_for_run(run_id)
