"""What `emu plan filters` prints: what measuring a corpus takes, by what the pilot cost on this machine."""

from rich import box
from rich.console import Console
from rich.table import Table

from emu_data.costs import FilterPlan, Machines


def print_filter_plan(plan: FilterPlan, num_pictures: int, machines: Machines, console: Console | None = None) -> None:
    """Print the pieces, what they take for all pictures, the pace and the money, and what was assumed."""
    console = console or Console()
    table = Table(title=f"Measuring {num_pictures:,} pictures", title_justify="left", box=box.SIMPLE_HEAD)
    columns = ("", "ms of a core", "ms of its network", "on", "pictures of the pilot", "share asked", "core-hours")
    for i, column in enumerate((*columns, "network-hours")):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for piece in plan.pieces:
        cost = piece.cost
        table.add_row(
            piece.name,
            f"{cost.core:.3g}",
            f"{cost.network:.3g}" if cost.network else "",
            cost.device if cost.network else "",
            f"{cost.num_pictures:,}",
            f"{piece.share:.1%}",
            f"{piece.core_hours:,.4g}",
            f"{piece.network_hours:,.4g}" if cost.network else "",
        )
    table.add_row("all", "", "", "", "", "", f"{plan.core_hours:,.4g}", f"{plan.network_hours:,.4g}")
    console.print(table)
    gpus = f", {machines.num_gpus:,} GPUs" if machines.num_gpus else ""
    lines = [
        f"{plan.hours:,.4g} hours on {machines.num_workers:,} workers of one core each{gpus}: {plan.dollars:,.0f} "
        f"dollars; the {plan.bound} set the pace",
        "measured: what a picture costs each piece, on this machine, as a mean over the pilot's pictures (the first "
        "rows of the corpus), and the share of them that each piece is asked about",
        f"assumed: {machines.dollars_per_hour:,.4g} dollars per hour for all of it; {machines.time_lost:.0%} of the "
        "time in addition for starts, retries and waiting for storage",
        "not included: reading from storage, steps on the whole corpus (near-twins, quotas)",
    ]
    console.print(*lines, sep="\n", highlight=False)
