"""Signals and policies from params.yaml, and the publishing of the filtered corpus with its report."""

from PIL import Image

from emu_dagster.layout import Layout
from emu_dagster.params import FilteredCorpus, Params, Policy
from emu_dagster.pictures import contact_sheet
from emu_data.engine import Engine
from emu_data.files import atomic_dir
from emu_data.ledger import FilterPolicy, ledger_columns, open_ledger
from emu_data.selection import SelectionPolicy, concept_entropy, final_ledger
from emu_data.shards import read_all_rows, read_images, write_subset
from emu_data.signals import Signal
from emu_data.signals.aesthetics import AestheticsSignal
from emu_data.signals.alignment import AlignmentSignal, distinct_captions
from emu_data.signals.caption import CaptionSignal
from emu_data.signals.concept import ConceptSignal
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.phash import PhashSignal
from emu_data.signals.safety import SafetySignal
from emu_data.signals.text_area import TextAreaSignal

SAMPLES_PER_SHARD = 1000  # of the filtered and the curated shards; chosen here
# Columns of the ledger that the manifest does without: write_subset brings the first two, the rest is the same in every
# row that was kept, or in the shards' own parquets.
NOT_IN_MANIFEST = ("caption", "shard", "url", "status", "error_message", "sha256")


def build_signals(layout: Layout, params: Params) -> list[Signal]:
    """All signals, cheapest first."""
    captions = read_all_rows(layout.raw)["caption"].dropna().tolist()
    model = params.alignment_model.pretrained or str(layout.model("alignment_model"))
    return [
        GeometrySignal(),
        CaptionSignal(),
        SafetySignal(),
        PhashSignal(),
        AestheticsSignal(),
        ConceptSignal(tuple((name, text) for name, texts in params.filtered_corpus.concepts.items() for text in texts)),
        AlignmentSignal(model, distinct_captions(captions)),
        TextAreaSignal(),
    ]


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


def row_policy(policy: Policy) -> FilterPolicy:
    return FilterPolicy(**policy.model_dump())


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


def publish_filtered(layout: Layout, params: Params) -> tuple[dict[str, float], str, Image.Image]:
    """Applies the gates that need the whole corpus, writes data/filtered and the funnel report.

    Returns counts, the gates' precision and recall as Markdown ("" where no damage is known), a contact sheet.
    """
    from emu_dagster.reporting.funnel import read_findings, write_funnel_report

    with atomic_dir(layout.filtered) as folder:
        ledger = folder / "ledger"
        decision = final_ledger(layout.ledger, ledger, selection_policy(params.filtered_corpus))
        with open_ledger(ledger) as con:
            left_out = (*NOT_IN_MANIFEST, *(f'"{c}"' for c in ("unmeasured",) if c in ledger_columns(con)))
            # The kept rows alone, num_images of them, whatever the size of the corpus.
            kept = con.sql(f"SELECT * EXCLUDE ({', '.join(left_out)}) FROM ledger WHERE kept ORDER BY key").df()
            write_subset(layout.raw, folder, kept["key"].tolist(), SAMPLES_PER_SHARD, columns=kept)
            findings = read_findings(con, layout, decision.counts)

    counts: dict[str, float] = {
        "num_rows": sum(decision.counts.values()),
        "num_images": decision.counts[""],
        "concept_entropy_before_bits": concept_entropy(decision.concepts_before),
        "concept_entropy_after_bits": concept_entropy(decision.concepts_after),
    }
    quality = findings.quality
    if quality is not None:
        counts["alignment_auc"] = findings.alignment_auc
        for row in quality.to_dict(orient="records"):
            counts[f"precision_{row['gate']}"], counts[f"recall_{row['gate']}"] = row["precision"], row["recall"]
    write_funnel_report(layout.report("filtered_corpus"), findings, counts, params)
    shown = kept.head(40)
    sheet = contact_sheet(read_images(layout.filtered, shown["key"].tolist(), 96), shown["concept"].tolist())
    return counts, quality.round(3).to_markdown(index=False) if quality is not None else "", sheet
