"""Makes signals and policies from params.yaml, measures the corpus, and publishes the filtered corpus with its
report.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.cascade import SHARD_MARK, StopRule, measure_group, read_values
from emu_data.cascade_order import (
    CascadeOrder,
    expected_cost,
    find_order,
    measured_costs,
    order_signals,
    shares_reached,
)
from emu_data.clip_models import find_clip
from emu_data.corpus_gates import CorpusPolicy, concept_entropy, final_ledger
from emu_data.costs import Cost
from emu_data.engine import Engine
from emu_data.files import atomic_dir
from emu_data.formatting import format_significant
from emu_data.guarded import decode_guarded
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
from emu_data.samples import STATUS_UNLISTED
from emu_data.shards import iter_samples, list_shards, read_images, read_rows, shard_digest, write_subset
from emu_data.signals import Signal
from emu_data.signals.aesthetics import AestheticsSignal
from emu_data.signals.alignment import MAX_CAPTIONS, AlignmentSignal
from emu_data.signals.caption import CaptionSignal, corpus_name, count_captions
from emu_data.signals.concept import ConceptSignal
from emu_data.signals.embedding import shared_encoder
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.looks import LooksSignal
from emu_data.signals.popularity import PopularitySignal
from emu_data.signals.safety import SafetySignal
from emu_data.signals.text_area import TextAreaSignal
from emu_reports.sheets import contact_sheet
from emu_steps.layout import Layout
from emu_steps.params import FilteredCorpus, Params

MUCH_COSTLIER = 1.5  # times the cost of the best order, from which on a warning is logged; chosen here
NUM_SHOWN = 40  # pictures on a sheet; chosen here
TILE = 96  # px per side of each; chosen here
SAMPLES_PER_SHARD = 1000  # of the filtered and the curated shards; chosen here
# Columns of the ledger that are not in the manifest: write_subset adds the first two itself; the others are the same in
# every kept row, or are in the shards' own parquets, or are not needed later (`looks`).
NOT_IN_MANIFEST = ("caption", "shard", "url", "status", "error_message", "sha256", "looks")


def build_signals(layout: Layout, params: Params) -> list[Signal]:
    """Make all signals. The captions of the corpus are counted first, once per set of shards.

    Raises ValueError if the zero_shot detector is chosen without alignment_weights.
    """
    section = params.filter_ledger.signals
    name = corpus_name(layout.raw)
    # in the cache, since counting takes only seconds; named by the rows that they count
    counts, sample = (layout.cache / "captions" / f"{name}-{what}.parquet" for what in ("counts", "sample"))
    count_captions(layout.raw, counts, sample, MAX_CAPTIONS)
    pretrained = section.alignment_weights
    folder = layout.model("alignment_model")
    is_scored = bool(pretrained) or any(folder.glob("fold_*"))
    model = str(find_clip(pretrained, layout.root)) if pretrained else str(folder)
    encoder = shared_encoder(model) if is_scored else None
    by_picture = encoder if pretrained else None  # weights trained on a small corpus know only its words
    if section.unsafe_detector == "zero_shot" and not pretrained:
        raise ValueError("filter_ledger.signals: unsafe_detector zero_shot needs alignment_weights")
    captions = tuple(pd.read_parquet(sample)["caption"])
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
        LooksSignal(),
        AestheticsSignal(str(layout.root / head), encoder) if head and encoder else AestheticsSignal(),
        ConceptSignal(tuple(concepts), by_picture),
        *([AlignmentSignal(model, captions, section.mirrored_alignment)] if is_scored else []),
        TextAreaSignal(section.canvas, words_between=section.words_between, scores_read=section.scores_read),
    ]
    return signals + ([PopularitySignal(section.popularity_column)] if section.popularity_column else [])


@dataclass(frozen=True)
class Timings:
    """What the pilot cost on this machine. It is reported but never written to data/.

    table: a row per piece in the cascade's order: declared and measured ms per picture, how many pictures the measured
    ones are means of, the device of the networks, pass rate and share of the pictures that reach it (0..1). expected:
    ms per picture in this order, and in the order that the measured costs would give; None if a cost is unknown.
    """

    table: pd.DataFrame
    expected: tuple[float, float] | None

    @property
    def warning(self) -> str | None:
        """A warning if another order would be much cheaper on this machine, otherwise None."""
        if self.expected is None or self.expected[0] < MUCH_COSTLIER * self.expected[1]:
            return None
        expected, best = map(format_significant, self.expected)
        return (
            f"a picture takes about {expected} ms on this machine; in the order of measured costs it would take {best} "
            "ms: the costs that the signals declare (emu_data/signals) do not fit this machine or this corpus"
        )


def build_rule(params: Params) -> StopRule:
    """Return the rule that decides which pictures are measured further: as long as filtering or a pretraining may still
    keep them, since pretrainings use fewer gates.
    """
    policy = params.filter_ledger.policy.model_dump()
    sections = (params.pretrained_low, params.pretrained_mid, params.pretrained_full)
    policies = [policy, *(_only(policy, section.gates) for section in sections)]
    return StopRule(tuple(policies), params.filter_ledger.control_share)


def find_cascade(layout: Layout, params: Params, rule: StopRule, signals: list[Signal], out_dir: Path) -> CascadeOrder:
    """Return the cascade's order, found on the corpus's first rows, whose values are in out_dir then. What measuring
    them cost is noted in the cache.
    """
    shards = [tar.stem for tar in list_shards(layout.raw)]
    return find_order(layout.raw, shards, signals, rule, out_dir, pilot_costs(layout), build_engine(params))


def pilot_costs(layout: Layout) -> Path:
    """Return the file of what the pilot cost on this machine, by the signals' versions."""
    return layout.cache / "pilot_costs.json"


def arrange_signals(layout: Layout, params: Params) -> tuple[list[Signal], StopRule, Timings]:
    """Return the signals in the cascade's order, the rule that decides which pictures are measured further, and what
    the pilot cost.
    """
    rule, signals = build_rule(params), build_signals(layout, params)
    found = find_cascade(layout, params, rule, signals, layout.signals)
    signals = found.arrange(signals)
    return signals, rule, compare_costs(found, signals, measured_costs(pilot_costs(layout), signals))


def compare_costs(found: CascadeOrder, signals: list[Signal], measured: Mapping[str, Cost]) -> Timings:
    """Compare the costs that the signals declare with those measured on this machine.

    signals: in the order found. measured: as emu_data.cascade_order.measured_costs returns it.
    """
    rows = []
    for piece, share in shares_reached(found, signals, control_share=0.0).items():
        cost = measured.get(piece)
        known = (cost.core, cost.network, cost.num_pictures, cost.device) if cost else (np.nan, np.nan, 0, "")
        rows.append((piece, found.costs.get(piece, np.nan), *known, found.pass_rates.get(piece, np.nan), share))
    columns = ["piece", "declared ms", "core ms", "network ms", "pictures", "device", "pass rate", "reached by"]
    table = pd.DataFrame(rows, columns=columns)
    # the embedding has no measured cost if no signal uses it
    costs = {"embedding": 0.0, **{piece: cost.total for piece, cost in measured.items()}}
    if found.costs.keys() - costs.keys():
        return Timings(table, None)
    order = order_signals(signals, costs, found.pass_rates)
    best = sorted(signals, key=lambda signal: order.index(signal.name))
    return Timings(
        table, (expected_cost(signals, costs, found.pass_rates), expected_cost(best, costs, found.pass_rates))
    )


def measure_corpus(
    layout: Layout, params: Params, report_progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, float], Image.Image | None, Timings]:
    """Bring data/signals and data/ledger up to date, one shard at a time; return the funnel's counts, a sheet of
    rejected pictures if there are any, and how long the pilot took. Only the values of one shard are in memory.
    report_progress: called with the number of shards measured so far and the number of all shards.

    Raises ValueError if a row was lost.
    """
    signals, rule, timings = arrange_signals(layout, params)
    policy, shards = params.filter_ledger.policy.model_dump(), [shard.stem for shard in list_shards(layout.raw)]
    measure_group(
        layout.raw, shards, signals, layout.signals, rule, engine=build_engine(params), on_progress=report_progress
    )
    for file in layout.ledger.glob("*.parquet"):  # rows of an earlier corpus would be counted too
        if file.stem not in shards:
            file.unlink()
    num_kept, gates, rejected = 0, Counter[str](), []
    for shard in shards:
        ledger = decide(read_values(layout.raw, [shard], signals, layout.signals), policy)
        num_unlisted = int((ledger["status"] == STATUS_UNLISTED).sum())  # in a tar, but in no parquet
        check_conserved(ledger, len(read_rows(layout.raw / f"{shard}.parquet")) + num_unlisted)
        write_ledger(layout.ledger, ledger, {SHARD_MARK: shard_digest(layout.raw / f"{shard}.parquet")})
        num_kept += int(ledger["kept"].sum())
        gates.update(ledger["first_failed_gate"])
        if len(rejected) < NUM_SHOWN:
            rejected += show_rejected(layout, ledger, NUM_SHOWN - len(rejected))
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


def show_rejected(layout: Layout, ledger: pd.DataFrame, at_most: int) -> list[tuple[np.ndarray, str]]:
    """Return at most `at_most` readable pictures that a gate rejected, uint8 (TILE, TILE, 3), with the gate's name."""
    rows = ledger[~ledger["kept"] & (ledger["first_failed_gate"] != "readable")].head(at_most)
    if not len(rows):
        return []
    gates = dict(zip(rows["key"], rows["first_failed_gate"], strict=True))
    # gates on captions or headers reject pictures that nothing has decoded yet
    found = decode_guarded(iter_samples(layout.raw, list(gates)), TILE)
    return [(image, gates[sample.key]) for sample, image in found]


def build_engine(params: Params) -> Engine:
    """Return the engine that params.yaml describes; `max_memory_gib` becomes bytes."""
    section = params.engine
    return Engine(
        name=section.name,
        num_workers=section.num_workers,
        threads_per_worker=section.threads_per_worker,
        max_memory=int(section.max_memory_gib * 2**30),
        ray_address=section.ray_address,
        num_gpus_per_actor=section.num_gpus_per_actor,
    )


def corpus_policy(section: FilteredCorpus) -> CorpusPolicy:
    """Return the policy of the gates that need the whole corpus, from the section filtered_corpus."""
    return CorpusPolicy(
        min_similarity=section.min_twin_similarity,
        min_side=section.min_curated_side,
        keep_best_by=tuple(section.keep_best_by),
        num_images=section.num_images,
        min_share=section.min_concept_share,
        max_share=section.max_concept_share,
        order_by=section.order_by,
        seed=section.seed,
    )


def _only(policy: Thresholds, gates: list[str]) -> Thresholds:
    """Return the policy with every gate except these switched off."""
    return {limit.field: policy[limit.field] if limit.gate in gates else None for limit in LIMITS}


def publish_filtered(
    layout: Layout, params: Params, made_from: Mapping[str, str]
) -> tuple[dict[str, float], pd.DataFrame | None, Image.Image]:
    """Apply the gates that need the whole corpus; write data/filtered and the funnel report.

    made_from: asset -> md5 of the inputs, listed in the report. Returns counts, the gates' precision and recall (None
    if no damage is known), and a contact sheet.

    Raises ValueError if a shard has no ledger yet.
    """
    from emu_reports.funnel import read_findings, write_funnel_report
    from emu_reports.page import Run

    missing = [s.stem for s in list_shards(layout.raw) if not (layout.ledger / f"{s.stem}.parquet").is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} shards have no ledger, the first are {', '.join(missing[:3])}; materialise filter_ledger"
        )
    with atomic_dir(layout.filtered) as folder:
        ledger = folder / "ledger"
        decision = final_ledger(layout.ledger, ledger, corpus_policy(params.filtered_corpus))
        with open_ledger(ledger) as con:
            left_out = (*NOT_IN_MANIFEST, *(f'"{c}"' for c in ("unmeasured",) if c in ledger_columns(con)))
            # Only the kept rows, num_images of them, whatever the size of the corpus.
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
    if findings.own_caption:
        counts |= {"own_caption_percent": findings.own_caption.estimate}
    if quality is not None:
        if findings.alignment_auc:
            auc = findings.alignment_auc
            counts |= {"alignment_auc": auc.value, "alignment_auc_low": auc.low, "num_swapped": auc.num_swapped}
        for row in quality.to_dict(orient="records"):
            counts[f"precision_{row['gate']}"], counts[f"recall_{row['gate']}"] = row["precision"], row["recall"]
    write_funnel_report(layout.report("filtered_corpus"), findings, counts, Run(params.profile, params.toy, made_from))
    shown = kept.head(NUM_SHOWN)
    sheet = contact_sheet(read_images(layout.filtered, shown["key"].tolist(), TILE), shown["concept"].tolist())
    return counts, quality, sheet
