"""Signals and policies from params.yaml, and the publishing of the filtered corpus with its report."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.cascade import Funnel, measure_group, read_values
from emu_data.engine import Engine
from emu_data.files import atomic_dir
from emu_data.formatting import format_significant
from emu_data.ledger import (
    LIMITS,
    Thresholds,
    check_conserved,
    decide,
    funnel,
    ledger_columns,
    open_ledger,
    write_ledger,
)
from emu_data.plan import Plan, expected_cost, make_plan, measured_costs, order_signals, with_text_probe
from emu_data.records import STATUS_UNLISTED
from emu_data.selection import SelectionPolicy, concept_entropy, final_ledger
from emu_data.shards import list_shards, read_images, read_rows, write_subset
from emu_data.signals import Signal
from emu_data.signals.aesthetics import AestheticsSignal
from emu_data.signals.alignment import MAX_CAPTIONS, AlignmentSignal
from emu_data.signals.caption import CaptionSignal, corpus_name, count_captions
from emu_data.signals.concept import ConceptSignal
from emu_data.signals.embedding import shared_encoder
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.phash import PhashSignal
from emu_data.signals.popularity import PopularitySignal
from emu_data.signals.safety import SafetySignal
from emu_data.signals.text_area import TextAreaSignal
from emu_reports.sheets import contact_sheet
from emu_steps.layout import Layout
from emu_steps.params import FilteredCorpus, Params

MUCH_DEARER = 1.5  # than the best order by measured costs: to be warned of; chosen here
NUM_SHOWN = 40  # rejected pictures on a sheet; chosen here
SAMPLES_PER_SHARD = 1000  # of the filtered and the curated shards; chosen here
# Columns of the ledger that the manifest does without: write_subset brings the first two, the rest is the same in every
# row that was kept, or in the shards' own parquets.
NOT_IN_MANIFEST = ("caption", "shard", "url", "status", "error_message", "sha256")


def build_signals(layout: Layout, params: Params) -> list[Signal]:
    """All signals. The captions of the corpus are counted first, once for these shards."""
    section = params.filter_ledger.signals
    name = corpus_name(layout.raw)
    # in the cache: they are made again in seconds, and named by the rows that they count
    counts, sample = (layout.cache / "captions" / f"{name}-{what}.parquet" for what in ("counts", "sample"))
    count_captions(layout.raw, counts, sample, MAX_CAPTIONS)
    pretrained = section.alignment_weights
    model = pretrained or str(layout.model("alignment_model"))
    encoder = shared_encoder(model)
    by_picture = encoder if pretrained else None  # weights trained on a small corpus know no words but its own
    if section.unsafe_detector == "zero_shot" and not pretrained:
        raise ValueError("filter_ledger.signals: unsafe_detector zero_shot needs alignment_weights")
    concepts = [(name, text) for name, texts in section.concepts.items() for text in texts]
    head = section.aesthetics_head
    signals: list[Signal] = [
        GeometrySignal(),
        CaptionSignal(str(counts)),
        SafetySignal(
            section.unsafe_column,
            section.unsafe_detector,
            encoder if section.unsafe_detector == "zero_shot" else None,
        ),
        PhashSignal(),
        AestheticsSignal(str(layout.root / head), encoder) if head else AestheticsSignal(),
        ConceptSignal(tuple(concepts), by_picture),
        AlignmentSignal(model, tuple(pd.read_parquet(sample)["caption"]), section.mirrored_alignment),
        TextAreaSignal(section.canvas, words_between=section.words_between),
    ]
    return signals + ([PopularitySignal(section.popularity_column)] if section.popularity_column else [])


@dataclass(frozen=True)
class Timings:
    """What the pilot took on this machine; told, and never recorded in data.

    table: a row for each signal in the cascade's order: declared and measured ms a picture, pass rate. expected: ms a
    picture in this order, and in the order that the measured costs would have given; None where a cost is not known.
    """

    table: pd.DataFrame
    expected: tuple[float, float] | None

    @property
    def warning(self) -> str | None:
        """Said where another order would be much cheaper here."""
        if self.expected is None or self.expected[0] < MUCH_DEARER * self.expected[1]:
            return None
        expected, best = map(format_significant, self.expected)
        return (
            f"in the cascade's order a picture takes about {expected} ms here, in the order of the costs "
            f"as measured {best}: the costs that the signals declare (emu_data/signals) do not fit "
            "this machine or this corpus"
        )


def plan_signals(layout: Layout, params: Params) -> tuple[list[Signal], Funnel, Timings]:
    """The signals in the order in which they turn most away for the least, what decides who goes on, and what the
    pilot took.

    A picture goes on as long as filtering or a stage of pre-training may want it: pre-training asks fewer gates.
    """
    policy = params.filter_ledger.policy.model_dump()
    sections = (params.pretrained_low, params.pretrained_mid, params.pretrained_full)
    policies = [policy, *(_only(policy, section.gates) for section in sections)]
    funnel = Funnel(tuple(policies), params.filter_ledger.control_share)
    shards = [tar.stem for tar in list_shards(layout.raw)]
    engine = build_engine(params)
    signals, _ = with_text_probe(layout.raw, shards, build_signals(layout, params), layout.signals, engine)
    timings = layout.cache / "pilot_ms.json"  # by the signals' versions
    plan = make_plan(layout.raw, shards, signals, funnel, layout.signals, timings, engine)
    signals = plan.arrange(signals)
    return signals, funnel, compare_costs(plan, signals, measured_costs(timings, signals))


def compare_costs(plan: Plan, signals: list[Signal], measured: Mapping[str, float]) -> Timings:
    """signals: in the plan's order. measured: emu_data.plan.measured_costs."""
    rows = [(name, plan.costs[name], measured.get(name, np.nan), plan.pass_rates[name]) for name in plan.order]
    table = pd.DataFrame(rows, columns=["signal", "declared ms", "measured ms", "pass rate"])
    costs = {"embedding": 0.0, **measured}  # of which nothing is known where no signal looks at it
    if plan.costs.keys() - costs.keys():
        return Timings(table, None)
    order = order_signals(signals, costs, plan.pass_rates)
    best = sorted(signals, key=lambda signal: order.index(signal.name))
    return Timings(table, (expected_cost(signals, costs, plan.pass_rates), expected_cost(best, costs, plan.pass_rates)))


def measure_corpus(
    layout: Layout, params: Params, told: Callable[[int, int], None] | None = None
) -> tuple[dict[str, float], Image.Image | None, Timings]:
    """Brings data/signals and data/ledger up to date, a shard at a time; returns the funnel's counts, a sheet of
    rejected pictures where there are any, and what the pilot took. Memory holds the values of one shard. told: hears
    how many shards are measured, and of how many.

    Raises ValueError where a row was lost.
    """
    signals, going_on, timings = plan_signals(layout, params)
    policy, shards = params.filter_ledger.policy.model_dump(), [shard.stem for shard in list_shards(layout.raw)]
    measure_group(layout.raw, shards, signals, layout.signals, going_on, engine=build_engine(params), told=told)
    for file in layout.ledger.glob("*.parquet"):  # rows of an earlier corpus would be counted with this one's
        if file.stem not in shards:
            file.unlink()
    num_kept, gates, rejected = 0, Counter[str](), []
    for shard in shards:
        ledger = decide(read_values(layout.raw, [shard], signals, layout.signals), policy)
        num_unlisted = int((ledger["status"] == STATUS_UNLISTED).sum())  # in a tar, and in no parquet
        check_conserved(ledger, len(read_rows(layout.raw / f"{shard}.parquet")) + num_unlisted)
        write_ledger(layout.ledger, ledger)
        num_kept += int(ledger["kept"].sum())
        gates.update(ledger["first_failed_gate"])
        if len(rejected) < NUM_SHOWN:
            rejected += _examples(layout, ledger, NUM_SHOWN - len(rejected))
    counts = funnel(gates)
    return (
        {
            "num_shards": len(shards),
            "num_rows": gates.total(),
            "num_kept": num_kept,
            **{f"num_dropped_{g}": n for g, n in zip(counts["gate"], counts["num_dropped"], strict=True)},
        },
        contact_sheet(np.stack([image for image, _ in rejected]), [gate for _, gate in rejected]) if rejected else None,
        timings,
    )


def _examples(layout: Layout, ledger: pd.DataFrame, at_most: int) -> list[tuple[np.ndarray, str]]:
    """Pictures of rows that a gate turned away though they can be read, with the gate's name."""
    rows = ledger[~ledger["kept"] & (ledger["first_failed_gate"] != "readable")].head(at_most)
    images = read_images(layout.raw, rows["key"].tolist(), 96) if len(rows) else []
    return list(zip(images, rows["first_failed_gate"], strict=True))


def build_engine(params: Params) -> Engine:
    section = params.engine
    return Engine(
        name=section.name,
        num_workers=section.num_workers,
        threads_per_worker=section.threads_per_worker,
        max_memory=int(section.max_memory_gib * 2**30),
        ray_address=section.ray_address,
        num_gpus_per_actor=section.num_gpus_per_actor,
    )


def selection_policy(section: FilteredCorpus) -> SelectionPolicy:
    return SelectionPolicy(
        max_distance=section.max_hash_distance,
        keep_best_by=tuple(section.keep_best_by),
        num_images=section.num_images,
        min_share=section.min_concept_share,
        max_share=section.max_concept_share,
        order_by=section.order_by,
        seed=section.seed,
    )


def _only(policy: Thresholds, gates: list[str]) -> Thresholds:
    """The policy with every gate but these switched off."""
    return {limit.field: policy[limit.field] if limit.gate in gates else None for limit in LIMITS}


def publish_filtered(
    layout: Layout, params: Params, made_from: Mapping[str, str]
) -> tuple[dict[str, float], pd.DataFrame | None, Image.Image]:
    """Applies the gates that need the whole corpus, writes data/filtered and the funnel report.

    made_from: asset -> md5 of what it is made of, which the report names. Returns counts, the gates' precision and
    recall (None where no damage is known), a contact sheet.
    """
    from emu_reports.funnel import read_findings, write_funnel_report
    from emu_reports.page import Run

    missing = [s.stem for s in list_shards(layout.raw) if not (layout.ledger / f"{s.stem}.parquet").is_file()]
    if missing:
        raise ValueError(f"no ledger of {len(missing)} shards, first {missing[:3]}; materialise filter_ledger of them")
    with atomic_dir(layout.filtered) as folder:
        ledger = folder / "ledger"
        decision = final_ledger(layout.ledger, ledger, selection_policy(params.filtered_corpus))
        with open_ledger(ledger) as con:
            left_out = (*NOT_IN_MANIFEST, *(f'"{c}"' for c in ("unmeasured",) if c in ledger_columns(con)))
            # The kept rows alone, num_images of them, whatever the size of the corpus.
            kept = con.sql(f"SELECT * EXCLUDE ({', '.join(left_out)}) FROM ledger WHERE kept ORDER BY key").df()
            write_subset(layout.raw, folder, kept["key"].tolist(), SAMPLES_PER_SHARD, columns=kept)
            findings = read_findings(con, layout.raw, layout.signals, layout.damage, decision.counts)

    counts: dict[str, float] = {
        "num_rows": sum(decision.counts.values()),
        "num_images": decision.counts[""],
        "concept_entropy_before_bits": concept_entropy(decision.concepts_before),
        "concept_entropy_after_bits": concept_entropy(decision.concepts_after),
    }
    quality = findings.quality
    if quality is not None:
        if findings.alignment_auc:
            auc = findings.alignment_auc
            counts |= {"alignment_auc": auc.value, "alignment_auc_low": auc.low, "num_swapped": auc.num_swapped}
        for row in quality.to_dict(orient="records"):
            counts[f"precision_{row['gate']}"], counts[f"recall_{row['gate']}"] = row["precision"], row["recall"]
    write_funnel_report(layout.report("filtered_corpus"), findings, counts, Run(params.profile, params.toy, made_from))
    shown = kept.head(40)
    sheet = contact_sheet(read_images(layout.filtered, shown["key"].tolist(), 96), shown["concept"].tolist())
    return counts, quality, sheet
