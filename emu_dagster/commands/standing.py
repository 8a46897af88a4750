"""`emu status` and `emu materialize --dry-run`: what is stale, why, when things were made and how long they took."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import dagster as dg
from rich.console import Console
from rich.table import Table

from emu_dagster.commands.driver import ancestors, in_order, stale_now
from emu_dagster.definitions import defs
from emu_dagster.machine.surroundings import refuse_surroundings
from emu_dagster.resources.instance import open_instance
from emu_data.formatting import format_duration
from emu_steps.layout import project_root


@dataclass(frozen=True)
class Standing:
    """How an asset stands. reason: why it is stale, "" where it is not. after: stale assets that it is made from,
    directly or not, in the order of the graph. made: when it was last materialised, None for never. seconds: what that
    took, None where Dagster has no record."""

    key: str
    reason: str
    after: tuple[str, ...]
    made: datetime | None
    seconds: float | None

    @property
    def is_open(self) -> bool:
        """Whether it is to be made, or may turn out to be when what comes before it was."""
        return bool(self.reason or self.after)


def read_standing(instance: dg.DagsterInstance) -> list[Standing]:
    """All assets of the project, in the order of the graph."""
    reasons = {stale.key: stale.reason for stale in stale_now(instance)}
    found = []
    for key in [key.to_user_string() for key in defs.resolve_asset_graph().toposorted_asset_keys]:
        above, (made, seconds) = ancestors([key]), _last_made(instance, key)
        after = tuple(other for other in reasons if other in above)
        found.append(Standing(key, reasons.get(key, ""), after, made, seconds))
    return found


def _last_made(instance: dg.DagsterInstance, key: str) -> tuple[datetime | None, float | None]:
    """When an asset was last materialised, and the seconds of that step: of a training that went on from a saved state,
    those since then."""
    event = instance.get_latest_materialization_event(dg.AssetKey(key))
    if event is None:
        return None, None
    steps = [s for s in instance.get_run_step_stats(event.run_id, [key]) if s.start_time and s.end_time]
    seconds = steps[0].end_time - steps[0].start_time if steps and steps[0].end_time and steps[0].start_time else None
    return datetime.fromtimestamp(event.timestamp), seconds


def print_status(console: Console | None = None) -> None:
    """Prints a row per asset, and about how long the stale ones will take."""
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
    """Prints what `emu materialize` with these arguments would make, and why; makes nothing. An asset below a stale one
    is made only if that one turns out different."""
    console = console or Console()
    refuse_surroundings(project_root())
    named = in_order(keys)
    standing = {one.key: one for one in read_standing(open_instance())}
    wanted: Collection[str] = {*named, *(ancestors(named) if upstream else ())} if named else standing
    going = [one for one in standing.values() if one.key in wanted and (one.is_open or one.key in named)]
    for one in going:
        state = "asked for" if one.key in named and not one.is_open else _state(one)
        console.print(f"{one.key}: {state}", highlight=False, markup=False, soft_wrap=True)
    stale = {key for key in ancestors(named) if standing[key].reason} - set(named)
    if stale and not upstream:
        told = f"stale above, and left as they are: {', '.join(in_order(list(stale)))}; --upstream makes them first"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    console.print(_outlook(going, "nothing would be made"), highlight=False, markup=False, soft_wrap=True)


def _state(one: Standing) -> str:
    if one.reason:
        return one.reason
    return f"perhaps, after {one.after[-1]}" if one.after else "up to date"


def _outlook(going: Sequence[Standing], nothing: str) -> str:
    """About how long it takes to make these, by what each took last. nothing: what is said of none."""
    if not going:
        return nothing
    known = [one.seconds for one in going if one.seconds is not None]
    made = f"{len(going)} asset{'s' if len(going) > 1 else ''} to make"
    if not known:
        return f"{made}; how long that takes is not known, since none was made here before"
    unknown = f", and {len(going) - len(known)} that were never timed here" if len(known) < len(going) else ""
    return f"{made}: at most about {format_duration(sum(known))}, by what they took last{unknown}"
