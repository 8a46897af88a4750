"""Signals and policies from params.yaml, and the publishing of the filtered corpus with its report."""

import numpy as np
import pandas as pd
from PIL import Image

from emu_dagster.layout import Layout
from emu_dagster.params import Params, Policy
from emu_dagster.pictures import contact_sheet
from emu_data.files import atomic_dir
from emu_data.ledger import (
    FilterPolicy,
    alignment_auc,
    check_conserved,
    funnel,
    gate_quality,
    read_ledger,
    write_ledger,
)
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


def row_policy(policy: Policy) -> FilterPolicy:
    return FilterPolicy(**policy.model_dump())


def publish_filtered(layout: Layout, params: Params) -> tuple[dict[str, float], str, Image.Image]:
    """Applies the gates that need the whole corpus, writes data/filtered and the funnel report.

    Returns counts, the gates' precision and recall as Markdown ("" where no damage is known), a contact sheet.
    """
    from emu_dagster.reporting.funnel import write_funnel_report

    section = params.filtered_corpus
    policy = SelectionPolicy(
        max_distance=section.max_hash_distance,
        num_images=section.num_images,
        max_share=section.max_concept_share,
        seed=section.seed,
    )
    decided = read_ledger(layout.ledger)
    ledger = final_ledger(decided, policy)
    check_conserved(ledger, len(decided))
    keys = ledger.loc[ledger["kept"], "key"].tolist()
    columns = ledger[ledger["kept"]].drop(columns=["caption", "shard", "url", "status", "error_message", "sha256"])
    with atomic_dir(layout.filtered) as folder:
        write_subset(layout.raw, folder, keys, SAMPLES_PER_SHARD, columns=columns)
        write_ledger(folder / "ledger", ledger)

    counts: dict[str, float] = {"num_rows": len(ledger), "num_images": len(keys)}
    passed = decided[decided["kept"]]
    counts["concept_entropy_before_bits"] = concept_entropy(passed["concept"])
    counts["concept_entropy_after_bits"] = concept_entropy(columns["concept"])
    quality: pd.DataFrame | None = None
    damage = pd.read_parquet(layout.damage)
    if len(damage):
        quality = gate_quality(ledger, damage)
        counts["alignment_auc"] = alignment_auc(ledger, damage)
        for row in quality.to_dict(orient="records"):
            counts[f"precision_{row['gate']}"], counts[f"recall_{row['gate']}"] = row["precision"], row["recall"]
    write_funnel_report(
        layout.report("filtered_corpus"), funnel(ledger), _examples(layout, ledger), quality, counts, params
    )
    sheet = contact_sheet(read_images(layout.filtered, keys[:40], 96), columns["concept"].tolist()[:40])
    return counts, quality.round(3).to_markdown(index=False) if quality is not None else "", sheet


def _examples(layout: Layout, ledger: pd.DataFrame, num_each: int = 8) -> dict[str, list[tuple[np.ndarray, str]]]:
    """Gate -> pictures that it dropped, with their captions."""
    examples = {}
    for gate, rows in ledger[~ledger["kept"]].groupby("first_failed_gate"):
        if gate == "readable":
            continue
        some = rows.head(num_each)
        images = read_images(layout.raw, some["key"].tolist(), 96)
        examples[str(gate)] = list(zip(images, some["caption"].tolist(), strict=True))
    return examples
