"""What the study says about its numbers: the trend if it holds, the reason if not, the sign of the Fourier transform's
effect."""

import json
from pathlib import Path

import pytest

from emu_data.votes.intervals import Interval
from emu_models.evaluation.reconstruction import Difference
from emu_reports.autoencoder import Step
from emu_steps.autoencoder_study import choose_features, describe_steps, late_gain, neighbours
from emu_steps.layout import Layout
from emu_steps.params import Variant
from emu_steps.training_jobs import autoencoder_job, autoencoder_network
from tests.profiles import params_of

PROFILES = Path(__file__).parents[2] / "profiles"
VARIANTS = {
    "c8": Variant(latent_channels=8, fourier_bands=0),
    "c4": Variant(latent_channels=4, fourier_bands=0),
    "c16_fourier": Variant(latent_channels=16, fourier_bands=2),
    "c16": Variant(latent_channels=16, fourier_bands=0),
}
NONE = Interval(0.0, -0.01, 0.01)


def step(before: str, after: str, estimate: float, half: float) -> Step:
    return Step(before, after, Difference(NONE, Interval(estimate, estimate - half, estimate + half), NONE))


def described(*steps: Step, **late_gains: float) -> str:
    return describe_steps(list(steps), VARIANTS, {"c4": 0.1, "c8": 0.1, "c16": 0.1} | late_gains, 15)


def test_channels_are_compared_in_order_and_fourier_with_its_counterpart():
    assert neighbours(VARIANTS) == [("c4", "c8"), ("c8", "c16"), ("c16", "c16_fourier")]


def test_a_trend_that_holds_is_reported():
    text = described(step("c4", "c8", 2.0, 0.5), step("c8", "c16", 3.0, 0.5))
    assert "rises with every step" in text and "4 to 8 +2.00 (+1.50 to +2.50) dB" in text


def test_a_broken_trend_is_reported_with_what_the_curves_show():
    behind = step("c8", "c16", -1.0, 0.5)
    text = described(step("c4", "c8", 2.0, 0.5), behind, c16=0.9)
    assert "rises in 1 of 2" in text and "training was too short" in text and "+0.90 dB" in text
    assert "not because the training was too short" in described(behind, c16=0.0)
    assert "do not show whether 8 or 16 channels are better" in described(step("c8", "c16", 0.1, 0.5))


@pytest.mark.parametrize("estimate, verdict", [(0.5, "helps"), (-0.5, "hurts"), (0.01, "no measurable")])
def test_fourier_is_reported_whichever_sign_it_has(estimate, verdict):
    assert verdict in described(step("c16", "c16_fourier", estimate, 0.1))


def test_without_an_interval_nothing_is_claimed():
    """With too few pictures, or if all are alike, there is an estimate without an interval."""
    nan = float("nan")
    unknown = [
        Step(before, after, Difference(NONE, Interval(-2.0, nan, nan), NONE))
        for before, after in (("c8", "c16"), ("c16", "c16_fourier"))
    ]
    text = described(*unknown)
    assert "rises in 0 of 1" in text and "do not show whether" in text and "no measurable difference" in text
    assert "nan" not in text and "behind" not in text and "(no interval)" in text


def test_the_late_gain_is_that_of_the_last_third(tmp_path):
    lines = [{"step": s, "val_psnr": p} for s, p in ((40, 20.0), (80, 23.0), (120, 23.5))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert late_gain(tmp_path) == pytest.approx(0.5)


def test_no_report_measures_with_the_encoder_of_the_perceptual_loss(tmp_path, monkeypatch):
    params = params_of("smoke")
    section = params.autoencoder_study
    perceptual = section.losses.perceptual.model_copy(update={"kind": "encoder", "weight": 0.1})
    losses = section.losses.model_copy(update={"perceptual": perceptual})
    section = section.model_copy(update={"losses": losses})
    layout = Layout(tmp_path)
    network = autoencoder_network(section, next(iter(section.variants.values())))
    job = autoencoder_job(layout, "a", "a", tmp_path, tmp_path, section, network, None, params.launch)
    assert job.training.losses.perceptual.path == str(layout.model("alignment_model") / "fold_0")
    measured_on = []
    monkeypatch.setattr("emu_models.evaluation.features.encoder_features", measured_on.append)
    with pytest.raises(ValueError, match="no alignment model was trained.*autoencoder_study.inception"):
        choose_features(layout, section)
    (layout.model("alignment_model") / "fold_1").mkdir(parents=True)
    choose_features(layout, section)
    assert measured_on == [layout.model("alignment_model") / "fold_1"]
