"""Checks across sections of params.yaml: names that must exist, and sizes that must be multiples of each other."""

from typing import TYPE_CHECKING, Any

from emu_data.formatting import format_significant
from emu_steps.params.kinds import unknown_names
from emu_steps.params.training import tunes_ours

if TYPE_CHECKING:
    from emu_steps.params import Params


def broken_references(params: "Params") -> dict[Any, str]:
    """Return the path of each entry that does not fit another section -> why, and what would fit."""
    return {
        **_variant(params),
        **_resolutions(params),
        **_alignment(params),
        **_selection(params),
        **_contestants(params),
    }


def _variant(params: "Params") -> dict[Any, str]:
    variants, name = params.autoencoder_study.variants, params.autoencoder.variant
    if name in variants:
        return {}
    return {("autoencoder", "variant"): f"autoencoder_study has no variant {name!r}; there are: {', '.join(variants)}"}


def _resolutions(params: "Params") -> dict[Any, str]:
    """Check resolutions: an autoencoder also learns at half its resolution (emu_models.latent.autoencoder_learner), and
    a U-Net halves latents between two levels."""
    factor = params.autoencoder_study.factor
    multiple = factor * 2 ** (len(params.pretrained_low.denoiser.widths) - 1)
    wrong: dict[Any, str] = {}
    for name in ("autoencoder_study", "autoencoder"):
        if (side := getattr(params, name).resolution) % factor or side < 2 * factor:
            wrong[name, "resolution"] = (
                f"must be a multiple of {factor} px and at least {2 * factor}: the autoencoder's fold and widths make "
                f"{factor} px one latent position"
            )
    ours = ("quality_tuned",) if tunes_ours(params.quality_tuned.start_from) else ()
    for name in ("pretrained_low", "pretrained_mid", "pretrained_full", *ours):
        if getattr(params, name).resolution % multiple:
            wrong[name, "resolution"] = (
                f"must be a multiple of {multiple} px: {factor} of the autoencoder, times 2 for each level of "
                "pretrained_low.denoiser after the first"
            )
    return wrong


def trains_alignment(params: "Params") -> bool:
    """Whether the alignment models are trained: only if they are asked for, and no weights are given instead."""
    return bool(params.alignment_model.num_folds and not params.filter_ledger.signals.alignment_weights)


def has_alignment(params: "Params") -> bool:
    """Whether anything scores how well captions fit: the alignment models, or weights that the user names."""
    return trains_alignment(params) or bool(params.filter_ledger.signals.alignment_weights)


def _alignment(params: "Params") -> dict[Any, str]:
    if has_alignment(params):
        return {}
    section = params.filter_ledger
    advice = (
        "nothing measures it: set filter_ledger.signals.alignment_weights, or alignment_model.num_folds to 2 or more"
    )
    wrong: dict[Any, str] = {
        ("filter_ledger", "policy", name): f"{advice}, or null here"
        for name in ("min_alignment_rank", "min_alignment")
        if getattr(section.policy, name) is not None
    }
    if section.signals.aesthetics_head:
        wrong["filter_ledger", "signals", "aesthetics_head"] = (
            "it needs an embedding: set filter_ledger.signals.alignment_weights, or null here"
        )
    return wrong


def _selection(params: "Params") -> dict[Any, str]:
    section, num_concepts = params.filtered_corpus, len(params.filter_ledger.signals.concepts)
    popularity = params.filter_ledger.signals.popularity_column
    columns = ledger_columns(has_popularity=popularity is not None, has_alignment=has_alignment(params))
    wrong = unknown_names(("filtered_corpus", "keep_best_by"), section.keep_best_by, columns)
    if section.order_by is not None and section.order_by not in columns:
        wrong["filtered_corpus", "order_by"] = f"there is no {section.order_by!r}; there are: {', '.join(columns)}"
    if section.max_concept_share * num_concepts < 1:
        wrong["filtered_corpus", "max_concept_share"] = (
            f"{num_concepts} concepts (filter_ledger.signals.concepts) with that share each are less than the whole; "
            f"give at least {format_significant(1 / num_concepts)}"
        )
    if section.min_concept_share * num_concepts > 1:
        wrong["filtered_corpus", "min_concept_share"] = (
            f"{num_concepts} concepts (filter_ledger.signals.concepts) with that share each are more than the whole; "
            f"give at most {format_significant(1 / num_concepts)}"
        )
    return wrong


def ledger_columns(has_popularity: bool, has_alignment: bool = True) -> list[str]:
    """Return the numeric columns of a ledger, by which pictures can be ordered: those of the signals that
    emu_steps.filtering.build_signals makes.
    """
    from emu_data.signals.aesthetics import AestheticsSignal
    from emu_data.signals.alignment import AlignmentSignal
    from emu_data.signals.caption import CaptionSignal
    from emu_data.signals.concept import ConceptSignal
    from emu_data.signals.geometry import GeometrySignal
    from emu_data.signals.looks import LooksSignal
    from emu_data.signals.popularity import PopularitySignal
    from emu_data.signals.safety import SafetySignal
    from emu_data.signals.text_area import TextAreaSignal

    signals = (
        GeometrySignal,
        CaptionSignal,
        SafetySignal,
        LooksSignal,
        AestheticsSignal,
        ConceptSignal,
        *((AlignmentSignal,) if has_alignment else ()),
        TextAreaSignal,
        *((PopularitySignal,) if has_popularity else ()),
    )
    return sorted(name for signal in signals for name, dtype in signal.columns.items() if dtype != "string")


def _contestants(params: "Params") -> dict[Any, str]:
    known, pair, wrong = params.evaluation_images.contestants, params.comparison, dict[Any, str]()
    if unknown := [name for name in pair if name not in known]:
        wrong["comparison",] = f"there is no contestant {unknown[0]!r}; there are: {', '.join(known)}"
    elif pair[0] == pair[1]:
        wrong["comparison",] = f"{pair[0]} is compared with itself; name two contestants"
    name = params.registered_model.name
    for contestant, address in known.items():
        if address.startswith(f"models:/{name}@"):
            wrong["evaluation_images", "contestants", contestant] = (
                f"{address} is an alias that the result of this comparison moves; name a version, such as "
                f"models:/{name}/1"
            )
    return wrong
