"""Too few rows give one sentence before an asset starts, and enough give none."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emu_data.addresses import Store
from emu_data.ledger import write_ledger
from emu_data.shards import write_manifest
from emu_data.sources.folder import register_folder
from emu_steps.layout import Layout
from emu_steps.needs import find_shortage, find_shortages, refuse_shortage
from emu_steps.training_jobs import write_training_rows
from tests.profiles import params_of

STUDIO = "http://127.0.0.1:8001"
TRAININGS = ("pretrained_low", "pretrained_mid", "pretrained_full")


def make_project(root: Path, num: int) -> Layout:
    """Write everything that assets read, with `num` pictures in each."""
    layout, source = Layout(root), root / "pictures"
    source.mkdir(parents=True)
    for i in range(max(1, num)):
        Image.fromarray(np.full((96, 96, 3), 20 * i, np.uint8)).save(source / f"{i}.png")
        if i < num:  # a picture without a caption does not count as arrived
            (source / f"{i}.txt").write_text(f"thing {i}")
    register_folder(Store(str(source)), layout.raw, progress=False)
    keys = [f"{i:09d}" for i in range(num)]
    rows = pd.DataFrame({"key": keys, "shard": "00000", "caption": "a", "first_failed_gate": "", "unmeasured": ""})
    lost = rows.reindex([0]).assign(key="lost", shard="00000", caption="a", first_failed_gate="readable", unmeasured="")
    write_ledger(layout.filtered / "ledger", pd.concat([rows, lost]).astype("string").assign(kept=True))
    for folder in (layout.filtered, layout.curated):
        write_manifest(folder, rows[["key", "shard", "caption"]])
    return layout


OF_CURATED = {"quality_tuned", "automatic_report", "family_study", "generality_report", "tuning_study"}


@pytest.mark.parametrize(
    ("num", "lacking"),
    [
        (0, {"generalist_votes", *TRAININGS, *OF_CURATED, "autoencoder"}),
        (1, {*TRAININGS, *OF_CURATED, "autoencoder"}),
        (2, set()),
        (9, None),
    ],
)
def test_what_has_too_few_rows_says_how_many_it_needs(tmp_path: Path, num: int, lacking: set[str] | None) -> None:
    layout, params = make_project(tmp_path, num), params_of("smoke")
    reported = find_shortages(layout, params, STUDIO)
    always = set() if lacking is None else {"alignment_model", "autoencoder_study", "faithfulness_judge"}
    assert {text.split(":")[0] for text in reported} == always | (lacking or set())
    for text in reported:
        asset = text.split(":")[0]
        assert f"{asset}: {num} " in text and "at least" in text and ";" in text and "\n" not in text
        with pytest.raises(ValueError, match="it needs at least"):
            refuse_shortage(layout, params, asset, STUDIO)
    refuse_shortage(layout, params, "filter_ledger", STUDIO)  # takes any number


def test_an_input_that_is_not_made_yet_is_no_shortage(tmp_path: Path) -> None:
    assert find_shortages(Layout(tmp_path), params_of("smoke"), STUDIO) == []


def test_pictures_of_unknown_size_are_measured_before_an_autoencoder_learns_from_them(tmp_path: Path) -> None:
    layout, params = make_project(tmp_path, 6), params_of("smoke")
    Image.new("RGB", (20, 20)).save(tmp_path / "pictures" / "0.png")
    for file in layout.raw.glob("*.parquet"):
        pd.read_parquet(file).drop(columns=["width", "height"]).to_parquet(file)
    assert find_shortage(layout, params, "autoencoder", STUDIO) is None
    rows = pd.read_parquet(write_training_rows(layout, params.autoencoder.resolution, params.autoencoder.max_images))
    assert len(rows) == 5  # all but the small one


def test_an_autoencoder_without_an_alignment_model_says_which_features_it_needs() -> None:
    trained, layout = params_of("smoke"), Layout(Path("nowhere"))
    untrained = trained.alignment_model.model_copy(update={"num_folds": 0})
    params = trained.model_copy(update={"alignment_model": untrained})
    with pytest.raises(ValueError, match=r"perceptual\.path .*autoencoder_study\.inception to the path"):
        refuse_shortage(layout, params, "autoencoder_study", STUDIO)
    with pytest.raises(ValueError, match=r"^autoencoder: .*perceptual\.path"):
        refuse_shortage(layout, params, "autoencoder", STUDIO)
    refuse_shortage(layout, trained, "autoencoder_study", STUDIO)
