"""Progress on a run's page: now and then, with numbers, and always at the end."""

import dagster as dg
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_dagster.training.progress import SECONDS, Progress


@settings(deadline=None)  # the first call imports
@given(st.lists(st.floats(0, 20), min_size=1, max_size=60))
def test_events_are_rare_and_the_end_is_always_reported(waits: list[float]):
    now, heard = [0.0], []
    progress = Progress(lambda text: heard.append((now[0], text)), "filter_ledger", "shard", clock=lambda: now[0])
    for done, wait in enumerate(waits, start=1):
        now[0] += wait
        progress(done, len(waits))
    times = [at for at, _ in heard]
    assert all(later - earlier >= SECONDS for earlier, later in zip(times[:-2], times[1:-1], strict=True))
    assert heard[-1][1] == f"filter_ledger: shard {len(waits)} of {len(waits)}"


def test_the_time_left_is_computed_from_the_work_and_not_from_what_came_before():
    now, heard = [0.0], []
    progress = Progress(heard.append, "filter_ledger", "shard", clock=lambda: now[0])
    now[0] = 1000  # the order of the signals was found first
    progress(1, 101)
    now[0] += 10
    progress(11, 101)
    assert heard == ["filter_ledger: shard 1 of 101", "filter_ledger: shard 11 of 101, about 1 min 30 s left"]


def test_a_training_reports_its_losses_and_the_time_left():
    heard: list[str] = []
    Progress(heard.append, "pretrained_low", "step")(
        50, 380, {"loss": 0.123456, "val_loss": 0.2, "grad": 1.0, "steps_per_second": 2.0}
    )
    assert heard == ["pretrained_low: step 50 of 380, loss 0.1235, val loss 0.2, about 2 min 45 s left"]


def test_it_becomes_an_event_of_the_run():
    @dg.asset
    def long_one(context: dg.AssetExecutionContext) -> None:
        Progress(context.log.info, "long_one", "shard")(1, 1)

    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.materialize([long_one], instance=instance)
        assert "long_one: shard 1 of 1" in [entry.user_message for entry in instance.all_logs(run.run_id)]
