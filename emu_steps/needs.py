"""What an asset needs before it starts: how many rows at least, and people's votes if only people decide. `emu doctor`
checks it too.

The numbers are those with which something can be learnt and something held out, not those with which the result is
useful.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emu_steps.layout import Layout
from emu_steps.params import AutoencoderTraining, Params, Pretraining
from emu_steps.params.references import trains_alignment

LEAST_TRAINED = 2  # rows of a training: one to learn from and one held out (training.order.held_out)
LEAST_STUDIED = 4  # pictures of the autoencoder study: two of them are held out, and fewer give no interval
LEAST_JUDGED = 4  # pictures of the faithfulness judge: some to learn from, some to test it on; chosen here
LEAST_COMPARED = 2  # curated pictures: fewer have no distribution

Count = Callable[[], int]


def find_shortage(layout: Layout, params: Params, asset: str, studio: str) -> str | None:
    """Return what an asset lacks, in one sentence; None if it lacks nothing, or if its inputs do not exist yet. studio:
    the address at which people vote.
    """
    if few := find_few(layout, params, asset):
        return few
    if not asset.endswith("_votes"):
        return None
    from emu_steps.waiting import find_waiting

    return find_waiting(layout, params, asset, studio)


def find_few(layout: Layout, params: Params, asset: str) -> str | None:
    """Return that an asset has too few rows, in one sentence; None if it has enough, or if they do not exist yet."""
    wanted = _wanted(layout, params).get(asset)
    if wanted is None:
        return None
    least, what, count, remedy = wanted
    try:
        num = count()
    except (ValueError, FileNotFoundError):  # not made yet: the asset itself reports that
        return None
    if num >= least:
        return None
    return f"{asset}: {num} {what}, but it needs at least {least}; {remedy}"


def refuse_shortage(layout: Layout, params: Params, asset: str, studio: str) -> None:
    """Raise ValueError if an asset lacks rows or features, or waits for people."""
    if shortage := find_shortage(layout, params, asset, studio) or _find_no_features(params, asset):
        raise ValueError(shortage)


def _find_no_features(params: Params, asset: str) -> str | None:
    """Return which features an autoencoder lacks where no alignment model is trained. `emu doctor` does not ask: who
    tunes a checkpoint of their own never trains an autoencoder.
    """
    if asset not in ("autoencoder_study", "autoencoder") or trains_alignment(params):
        return None
    perceptual = (params.autoencoder_study if asset == "autoencoder_study" else params.autoencoder).losses.perceptual
    lacking = []
    if perceptual.kind == "encoder" and not perceptual.path:
        lacking.append(f"{asset}.losses.perceptual.path to a folder with open_clip weights, or its kind to none")
    if asset == "autoencoder_study" and not params.autoencoder_study.inception:
        lacking.append("autoencoder_study.inception to the path of inception-2015-12-05.pt")
    return (
        f"{asset}: no alignment model is trained, whose features it would use; set {', and '.join(lacking)}"
        if lacking
        else None
    )


def find_shortages(layout: Layout, params: Params, studio: str) -> list[str]:
    """Return what assets lack, one sentence each; assets whose inputs do not exist yet are left out."""
    rounds = [name for name in type(params).model_fields if name.endswith("_votes")]
    assets = dict.fromkeys([*_wanted(layout, params), *rounds])
    found = (find_shortage(layout, params, asset, studio) for asset in assets)
    return [shortage for shortage in found if shortage]


def _wanted(layout: Layout, params: Params) -> dict[str, tuple[int, str, Count, str]]:
    """Return asset -> (least number, of what, how they are counted, what to do)."""
    more = "use more pictures (emu ingest), or see data/reports/corpus_report for what drops them"
    curated: tuple[str, Count, str] = (
        "pictures are in the curated set",
        lambda: _count_manifest(layout.curated),
        "let the rounds of votes keep more, or raise curated_set.num_images",
    )
    wanted: dict[str, tuple[int, str, Count, str]] = {
        "generalist_votes": (1, "pictures passed all gates", lambda: _count_manifest(layout.filtered), more),
        "faithfulness_judge": (LEAST_JUDGED, "pictures passed the gates", lambda: _count_judged(layout), more),
        "quality_tuned": (LEAST_TRAINED, *curated),
        "automatic_report": (LEAST_COMPARED, *curated),
    }
    if params.family_study.families:
        wanted |= {"family_study": (LEAST_TRAINED, *curated), "generality_report": (LEAST_COMPARED, *curated)}
    if params.tuning_study.has_arms:
        wanted["tuning_study"] = (LEAST_COMPARED, *curated)
    if trains_alignment(params):
        wanted["alignment_model"] = (
            2 * params.alignment_model.num_folds,
            "rows have a picture",
            lambda: _count_arrived(layout),
            "use more pictures (emu ingest), or set alignment_model.num_folds to 0, "
            "filter_ledger.policy.min_alignment_rank to null, and filtered_corpus.keep_best_by without alignment_rank",
        )
    for asset, least in (("autoencoder_study", LEAST_STUDIED), ("autoencoder", LEAST_TRAINED)):
        section: AutoencoderTraining = getattr(params, asset)
        wanted[asset] = (
            least,
            f"pictures of at least {section.resolution} px can be learnt from",
            lambda section=section: _count_large(layout, section),
            f"use more or larger pictures (emu ingest), or lower {asset}.resolution",
        )
    for asset in ("pretrained_low", "pretrained_mid", "pretrained_full"):
        pretraining: Pretraining = getattr(params, asset)
        size = "" if pretraining.min_side is None else f" and {asset}.min_side"
        wanted[asset] = (
            LEAST_TRAINED,
            f"pictures passed {asset}.gates{size}",
            lambda section=pretraining: _count_gated(layout, section),
            more,
        )
    return wanted


def _count_manifest(folder: Path) -> int:
    from emu_data.shards import read_manifest

    return len(read_manifest(folder))


def _count_arrived(layout: Layout) -> int:
    from emu_data.samples import STATUS_SUCCESS
    from emu_data.shards import iter_rows

    return sum(int((rows["status"] == STATUS_SUCCESS).sum()) for rows in iter_rows(layout.raw, ["status"]))


def _count_large(layout: Layout, section: AutoencoderTraining) -> int:
    from emu_data.shards import iter_rows
    from emu_steps.training_jobs import ROW_COLUMNS, usable_rows

    return sum(len(usable_rows(rows, section.resolution)) for rows in iter_rows(layout.raw, ROW_COLUMNS))


def _count_gated(layout: Layout, section: Pretraining) -> int:
    from emu_steps.training_jobs import passed_sql

    return _count_ledger(layout, *passed_sql(section.gates, section.min_side))


def _count_judged(layout: Layout) -> int:
    from emu_steps.training_jobs import PASSED_ALL

    return _count_ledger(layout, PASSED_ALL)


def _count_ledger(layout: Layout, passed: str, values: dict[str, Any] | None = None) -> int:
    from emu_data.ledger import open_ledger

    with open_ledger(layout.filtered / "ledger") as con:
        return con.execute(f"SELECT count(*) FROM ledger WHERE {passed}", values).fetchall()[0][0]
