"""`emu status` and `emu materialize --dry-run`: what is stale, why, when each asset was made and how long it took."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import dagster as dg
from rich.console import Console
from rich.table import Table

from emu_dagster.commands.driver import ancestors, in_order, stale_now
from emu_dagster.definitions import defs
from emu_dagster.machine.surroundings import refuse_surroundings
from emu_dagster.resources.instance import last_materializations, open_instance
from emu_data.formatting import format_duration
from emu_steps.layout import project_root


@dataclass(frozen=True)
class Standing:
    """The state of an asset. reason: why it is stale, "" if it is not. after: stale assets upstream of it, in the order
    of the graph. made: when it was last materialised, None if never. seconds: how long that took, None if Dagster has
    no record.
    """

    key: str
    reason: str
    after: tuple[str, ...]
    made: datetime | None
    seconds: float | None

    @property
    def is_open(self) -> bool:
        """Whether it has to be made, or may have to be once the assets upstream of it are made."""
        return bool(self.reason or self.after)


def read_standing(instance: dg.DagsterInstance) -> list[Standing]:
    """Return the state of every asset of the project, in the order of the graph."""
    reasons = {stale.key: stale.reason for stale in stale_now(instance)}
    found = []
    keys = [key.to_user_string() for key in defs.resolve_asset_graph().toposorted_asset_keys]
    last_made = _last_made(instance, keys)
    for key in keys:
        above, (made, seconds) = ancestors([key]), last_made.get(key, (None, None))
        after = tuple(other for other in reasons if other in above)
        found.append(Standing(key, reasons.get(key, ""), after, made, seconds))
    return found


def _last_made(instance: dg.DagsterInstance, keys: Sequence[str]) -> dict[str, tuple[datetime, float | None]]:
    """Return when each asset was last materialised, if ever, and how many seconds that took; of a training that
    continued from a saved state, only the seconds since then.
    """
    made = last_materializations(instance, keys)
    found = instance.get_run_records(dg.RunsFilter(run_ids=[event.run_id for event in made.values()])) if made else []
    runs = {record.dagster_run.run_id: record for record in found}
    return {
        key: (datetime.fromtimestamp(event.timestamp), _seconds_of(instance, key, runs.get(event.run_id)))
        for key, event in made.items()
    }


def _seconds_of(instance: dg.DagsterInstance, key: str, run: dg.RunRecord | None) -> float | None:
    """Return how many seconds an asset took in a run. A run of this asset alone, as the command line makes them, is not
    opened for that: each run has a database of its own, which takes Dagster a tenth of a second to open.
    """
    if run and len(run.dagster_run.asset_selection or ()) == 1:
        began, ended = run.start_time, run.end_time
    else:
        steps = instance.get_run_step_stats(run.dagster_run.run_id, [key]) if run else []
        began, ended = (steps[0].start_time, steps[0].end_time) if steps else (None, None)
    return ended - began if began and ended else None


def print_status(console: Console | None = None) -> None:
    """Print a row per asset, and about how long the stale ones will take."""
    console = console or Console()
    refuse_surroundings(project_root())
    standing = read_standing(open_instance())
    table = Table(box=None, pad_edge=False)
    for title, justify in (("asset", "left"), ("", "left"), ("last made", "left"), ("took", "right")):
        table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    for one in standing:
        made = f"{one.made:%Y-%m-%d %H:%M}" if one.made else "never"
        table.add_row(one.key, _state(one), made, format_duration(one.seconds))
    console.print(table)
    console.print(
        _outlook([one for one in standing if one.is_open], "everything is up to date"),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def print_dry_run(keys: Sequence[str], upstream: bool, console: Console | None = None) -> None:
    """Print what `emu materialize` would make with these arguments, and why; make nothing. An asset downstream of a
    stale one is made only if that one changes.
    """
    console = console or Console()
    refuse_surroundings(project_root())
    named = in_order(keys)
    standing = {one.key: one for one in read_standing(open_instance())}
    wanted: Collection[str] = {*named, *(ancestors(named) if upstream else ())} if named else standing
    going = [one for one in standing.values() if one.key in wanted and (one.is_open or one.key in named)]
    for one in going:
        state = "requested" if one.key in named and not one.is_open else _state(one)
        console.print(f"{one.key}: {state}", highlight=False, markup=False, soft_wrap=True)
    stale = {key for key in ancestors(named) if standing[key].reason} - set(named)
    if stale and not upstream:
        note = f"stale upstream, and left as they are: {', '.join(in_order(list(stale)))}; --upstream makes them first"
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print(_outlook(going, "nothing would be made"), highlight=False, markup=False, soft_wrap=True)


def _state(one: Standing) -> str:
    if one.reason:
        return one.reason
    return f"perhaps, after {one.after[-1]}" if one.after else "up to date"


def _outlook(going: Sequence[Standing], nothing: str) -> str:
    """Return about how long it takes to make these, by how long each took last. nothing: the text if there are none."""
    if not going:
        return nothing
    known = [one.seconds for one in going if one.seconds is not None]
    made = f"{len(going)} asset{'s' if len(going) > 1 else ''} to make"
    if not known:
        return f"{made}; how long that takes is unknown, since none of them was made here before"
    unknown = f", without the {len(going) - len(known)} that were never timed here" if len(known) < len(going) else ""
    return f"{made}: at most about {format_duration(sum(known))}, by how long they took last{unknown}"
