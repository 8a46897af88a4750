"""A run whose process is gone ends as failed, whatever it was doing when the process ended."""

import dagster as dg
import pytest

from emu_dagster.machine.abandoned import PROCESS_TAG, close_abandoned_runs
from emu_dagster.machine.processes import describe_process

STATUS = dg.DagsterRunStatus
GONE = describe_process().rsplit(":", 2)[0] + ":999999999:0"
FINISHED = ("SUCCESS", "FAILURE", "CANCELED")
NO_PROCESS = ("QUEUED", "MANAGED", "SUSPENDED")  # a run without a process so far, or with none on this machine
UNFINISHED = [status for status in STATUS if status.value not in (*FINISHED, *NO_PROCESS)]


@dg.job
def nothing() -> None:
    pass


@pytest.mark.parametrize("status", UNFINISHED)
def test_a_run_of_a_dead_process_ends_as_failed(status: dg.DagsterRunStatus) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(nothing, status=status, tags={PROCESS_TAG: GONE})
        close_abandoned_runs(instance)
        found = instance.get_run_by_id(run.run_id)
        assert found and found.status == STATUS.FAILURE


@pytest.mark.parametrize("status", UNFINISHED)
def test_runs_of_others_and_of_living_processes_stay(status: dg.DagsterRunStatus) -> None:
    import psutil

    alive = describe_process(psutil.Process().parent())
    with dg.DagsterInstance.ephemeral() as instance:
        for tags in ({}, {PROCESS_TAG: alive}):
            run = instance.create_run_for_job(nothing, status=status, tags=tags)
            close_abandoned_runs(instance)
            found = instance.get_run_by_id(run.run_id)
            assert found and found.status == status
