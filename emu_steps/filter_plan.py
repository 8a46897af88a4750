"""What measuring a corpus of another size would take, from what the pilot cost here: `emu plan filters`."""

import tempfile
from pathlib import Path

from emu_data.cascade_order import measured_costs, read_order, shares_reached
from emu_data.costs import FilterPlan, Machines, plan_filters
from emu_data.shards import list_shards
from emu_steps.filtering import build_rule, build_signals, find_cascade, pilot_costs
from emu_steps.layout import Layout
from emu_steps.params import Params


def plan_corpus(layout: Layout, params: Params, num_pictures: int, machines: Machines, measure: bool) -> FilterPlan:
    """Return what measuring `num_pictures` pictures like the corpus's first rows takes. measure: whether these rows are
    measured anew now, in a temporary folder; otherwise what filter_ledger's pilot cost counts.

    Raises ValueError if that is not known, or as emu_data.costs.plan_filters does.
    """
    if not list_shards(layout.raw):
        raise ValueError("data/raw holds no corpus, whose first pictures are measured: materialise raw_corpus")
    rule, signals = build_rule(params), build_signals(layout, params)
    if measure:
        with tempfile.TemporaryDirectory(prefix="emu-pilot-") as folder:
            order = find_cascade(layout, params, rule, signals, Path(folder) / "signals")
    else:
        order = read_order(layout.signals)
    costs = measured_costs(pilot_costs(layout), signals)
    if order is None or set(order.order) != {signal.name for signal in signals}:
        raise ValueError(
            "the pilot of these signals was not measured in this project: materialise filter_ledger, or run "
            "`emu plan filters --measure`, which measures it in a temporary folder"
        )
    shares = shares_reached(order, signals, rule.control_share)
    if missing := [piece for piece in shares if piece not in costs]:
        raise ValueError(
            f"what {', '.join(missing)} cost is not known on this machine (data/cache may have been deleted): run "
            "`emu plan filters --measure`, which measures the pilot again in a temporary folder"
        )
    return plan_filters([(piece, share, costs[piece]) for piece, share in shares.items()], num_pictures, machines)
