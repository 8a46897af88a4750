"""What identifies a training: every field is declared; what decides the result starts a new one beside it; other
settings let it continue."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pytest
import torch

from emu_data.files import write_json
from emu_models.alignment import AlignmentJob
from emu_models.alignment_learner import AlignmentConfig
from emu_models.flow.jobs import TransformerConfig
from emu_models.judge_training import JudgeConfig, JudgeJob
from emu_models.latent import trainings
from emu_models.latent.jobs import (
    Adapters,
    AutoencoderJob,
    AutoencoderLossConfig,
    AutoencoderTrainingConfig,
    DenoiserConfig,
    DenoiserJob,
    DenoiserTrainingConfig,
    PerceptualConfig,
)
from emu_models.masked.jobs import MaskedJob, MaskedTrainingConfig, MaskedTransformerConfig, TokenizerJob
from emu_models.pixel.jobs import CascadeJob
from emu_models.training.identity import counts_of, identify, open_folder, settings_of, weights_of
from emu_models.training.jobs import (
    CODE,
    CONTENTS,
    HOW,
    STOPPING,
    WEIGHTS,
    WHAT,
    LoopConfig,
    LoopJob,
    from_json,
    to_json,
)
from emu_models.training.loop import Interrupted
from emu_models.training.running import Running
from tests.shards import write_toy_shards
from tests.toy_cascade import base_job, upscaler_job
from tests.toy_masked import SMALL, masked_job, tokenizer_job
from tests.toy_training import LOOP, autoencoder_job, denoiser_job, places, result_of

ROWS = [("k0", "digest 0", "a red square"), ("k1", "digest 1", "a blue square")]


def write_weights(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(content)
    (folder / "config.json").write_text('{"width": 3, "_name_or_path": "somewhere"}')
    (folder / "open_clip_model.safetensors").write_text(content)
    return folder


@pytest.fixture(scope="module", autouse=True)
def single_precision() -> Iterator[None]:
    """With bf16 on AMX equal runs differ in the last bits (docs/log.md), and here files are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    for name in ("one", "other"):
        write_weights(folder / name, name)
        (folder / name / "metrics.jsonl").write_text("")  # as if a training had run there
    return folder


def whole_jobs(given: Path) -> list[LoopJob]:
    """Jobs in which every optional part occurs: each type is in one of them."""
    job, _ = denoiser_job((given, given), given, given / "one")
    tuned = replace(job, autoencoder=None, denoiser=None, start_from=given / "one", adapters=Adapters(4, 8.0, ("q",)))
    encoder, _ = autoencoder_job((given, given), given)
    losses = AutoencoderLossConfig(1e-6, 0.1, 0.5, PerceptualConfig("encoder", str(given / "one"), 0.1))
    encoder = replace(encoder, start_from=given / "one", training=replace(encoder.training, losses=losses))
    elsewhere: dict[str, Any] = {**places("aligned", (given, given), given), "loop": LOOP}
    aligned = AlignmentJob(**elsewhere, num_folds=2, training=AlignmentConfig())
    judge = JudgeJob(**elsewhere, root=given, held_share=0.3, weights=str(given / "one"), training=JudgeConfig())
    masked = masked_job((given, given), given, given / "one")
    tuned_masked = replace(masked, tokenizer=None, transformer=None, start_from=given / "one")
    tokenizer = replace(tokenizer_job((given, given), given), start_from=given / "one")
    losses = replace(losses, kl_weight=0.0)
    tokenizer = replace(tokenizer, training=replace(tokenizer.training, losses=losses))
    flow = replace(job, denoiser=None, transformer=TransformerConfig(patch=2, width=32, heads=2, layers=1))
    base = base_job((given, given), given)
    upscaler = upscaler_job((given, given), given, given / "one", denoiser=None, start_from=given / "one")
    return [job, tuned, flow, encoder, aligned, judge, masked, tuned_masked, tokenizer, base, upscaler]


def other_values(given: Path) -> dict[type, dict[str, Any]]:
    """Return another value for every field, so that a field without one fails the test."""
    other = given / "other"
    batches = {"num_steps": 7, "batch_size": 5, "learning_rate": 0.5, "seed": 9}
    network = {"width": 8, "embed_dim": 8, "text_width": 8, "max_tokens": 8, "weight_decay": 0.5}
    network |= {"label_smoothing": 0.5, "batch_size": 5, "seed": 9}
    captioned = {
        "start_from": other,
        "text_encoder": str(other),
        "num_text_tokens": 9,
        "training": DenoiserTrainingConfig(**batches, noise_offset=0.1, caption_dropout=0.2),
        "prompts": ("another",),
        "guidance_scale": 7.0,
        "aspect_buckets": 3,
        "encode": "on_the_fly",
        "local_copies": other,
        "local_copies_gb": 5.0,
        "hold_out": False,
        "stop_found_in": other,
    }
    return {
        LoopJob: {
            "name": "another",
            "shards": other,
            "rows": other,
            "resolution": 64,
            "out": other,
            "states": other,
            "cache": other,
            "loop": replace(LOOP, seed=5),
            "code": "other code",
        },
        LoopConfig: {
            "num_steps": 7,
            "learning_rate": 0.5,
            "warmup_steps": 3,
            "ema_decay": 0.5,
            "validate_every": 5,
            "max_rise": 0.7,
            "checkpoint_minutes": 1.0,
            "keep_states": 2,
            "keep_every": 2,
            "seed": 9,
            "sample_every": 3,
            "stop_after": 2,
        },
        AutoencoderJob: {
            "network": {"latent_channels": 8},
            "start_from": other,
            "training": AutoencoderTrainingConfig(**batches, losses=AutoencoderLossConfig(0.1, 0.1, 0.5)),
        },
        AutoencoderTrainingConfig: {
            **batches,
            "losses": AutoencoderLossConfig(0.1, 0.1, 0.5),
            "micro_batch_size": 2,
        },
        AutoencoderLossConfig: {
            "kl_weight": 0.5,
            "adversarial_weight": 0.7,
            "adversarial_start": 0.1,
            "perceptual": PerceptualConfig("lpips", str(other), 0.1),
        },
        PerceptualConfig: {"kind": "lpips", "path": str(other), "weight": 0.9},
        DenoiserJob: {
            **captioned,
            "autoencoder": other,
            "denoiser": DenoiserConfig((64, 64), (False, False), 1, "joint"),
            "transformer": TransformerConfig(patch=1, width=32, heads=2, layers=2),
            "noise_shift": 2.0,
            "adapters": Adapters(2, 8.0, ("q",)),
        },
        TransformerConfig: {"patch": 1, "width": 64, "heads": 4, "layers": 2, "bottleneck": 16},
        CascadeJob: {
            **captioned,
            "stage": "another",
            "base": other,
            "denoiser": DenoiserConfig((64, 64), (False, False), 1, "joint"),
            "patch": 2,
            "ratio": 8,
            "noise_shift": 2.0,
            "max_augmentation": 0.25,
            "augmentation": 0.2,
            "crop": 16,
        },
        DenoiserTrainingConfig: {
            **batches,
            "noise_offset": 0.3,
            "caption_dropout": 0.5,
            "micro_batch_size": 2,
            "gradient_checkpointing": True,
            "compile": True,
        },
        DenoiserConfig: {
            "widths": (64, 64),
            "attention": (True, False),
            "layers_per_level": 2,
            "middle": "full",
            "cross_attention_width": 8,
            "head_width": 32,
            "size_conditioning": True,
        },
        TokenizerJob: {
            "network": {"levels": [3, 3]},
            "start_from": other,
            "training": AutoencoderTrainingConfig(**batches, losses=AutoencoderLossConfig(0.1, 0.1, 0.5)),
        },
        MaskedJob: {
            **captioned,
            "tokenizer": other,
            "transformer": replace(SMALL, layers=3),
            "training": MaskedTrainingConfig(**batches, caption_dropout=0.2),
        },
        MaskedTrainingConfig: {
            **batches,
            "noise_offset": 0.3,
            "caption_dropout": 0.5,
            "micro_batch_size": 2,
            "gradient_checkpointing": True,
            "compile": True,
        },
        MaskedTransformerConfig: {
            "width": 64,
            "layers": 3,
            "heads": 4,
            "inner_width": 32,
            "outer_width": 64,
            "outer_heads": 4,
            "code_width": 32,
            "blocks": 2,
            "halved": True,
        },
        AlignmentJob: {"num_folds": 3, "training": AlignmentConfig(seed=9)},
        AlignmentConfig: network,
        JudgeJob: {"root": other, "held_share": 0.5, "weights": str(other), "training": JudgeConfig(seed=9)},
        JudgeConfig: network,
        Adapters: {"rank": 2, "alpha": 1.0, "target_modules": ("k",)},
    }


def changed(value: Any, owner: type, field: str, new: Any) -> Any:
    """Return `value` with the field of every part of type `owner` set; None if it has no such part."""
    if isinstance(value, owner):
        return replace(value, **{field: new})
    parts = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    made = {part.name: changed(getattr(value, part.name), owner, field, new) for part in parts}
    made = {name: part for name, part in made.items() if part is not None}
    return replace(value, **made) if made else None


KINDS = (LoopJob, LoopConfig, AutoencoderJob, AutoencoderTrainingConfig, AutoencoderLossConfig, PerceptualConfig)
KINDS += (DenoiserJob, DenoiserTrainingConfig, DenoiserConfig, Adapters)
KINDS += (TransformerConfig, CascadeJob)
KINDS += (TokenizerJob, MaskedJob, MaskedTrainingConfig, MaskedTransformerConfig)
KINDS += (AlignmentJob, AlignmentConfig, JudgeJob, JudgeConfig)
OF_ALL = {field.name for field in dataclasses.fields(LoopJob)}
FIELDS = [(owner, name) for owner in KINDS for name in counts_of(owner) if owner is LoopJob or name not in OF_ALL]


@pytest.mark.parametrize(("owner", "field"), FIELDS, ids=[f"{owner.__name__}.{field}" for owner, field in FIELDS])
def test_a_changed_field_identifies_another_training_if_it_decides_the_result(
    given: Path, owner: type, field: str
) -> None:
    counts, new = counts_of(owner)[field], other_values(given)[owner][field]
    seen = 0
    for job in whole_jobs(given):
        for max_rise in (0.0, 0.5):
            asked = replace(job, loop=replace(job.loop, max_rise=max_rise))
            before = identify(asked, ROWS)
            other = changed(asked, owner, field, new)
            if other is None or counts == CONTENTS and getattr(asked, "start_from", None) is not None:
                continue  # it has no such part; the checkpoint's own text encoder is used
            after = identify(other, ROWS)
            seen += 1
            decides = counts in (WHAT, WEIGHTS, CONTENTS, CODE) or (counts == STOPPING and max_rise > 0)
            assert (after.name != before.name) == decides, (owner, field, max_rise)
            assert (after.settings != before.settings) == (decides and counts not in (WEIGHTS, CONTENTS, CODE))
    assert seen


def test_jobs_come_out_of_json_unchanged(given: Path) -> None:
    for job in whole_jobs(given):
        back = from_json(json.loads(json.dumps(to_json(job))))
        assert isinstance(back, LoopJob) and back == job and identify(back, ROWS) == identify(job, ROWS)


@dataclass(frozen=True, kw_only=True)
class ToyJob(LoopJob):
    """A kind of training in a few lines: what it learns is its seed."""

    scale: float
    note: Annotated[str, HOW] = ""

    def run(self, running: Running) -> dict[str, Any]:
        folder = open_folder(self.states, identify(self, ROWS))
        running.sink(self.num_steps, {"loss": self.scale})
        (folder / "result").write_text(str(self.scale * self.loop.seed))
        return self.reported(folder)


def test_a_kind_of_training_is_a_class_and_a_setting_is_a_field(tmp_path: Path) -> None:
    job = ToyJob(**places("toy", (tmp_path, tmp_path), tmp_path), loop=replace(LOOP, seed=3), scale=2.0)
    heard = {}
    result = from_json(json.loads(json.dumps(to_json(job)))).run(Running(sink=heard.__setitem__))
    assert Path(result["folder"], "result").read_text() == "6.0" and result["out"] == str(job.out)
    assert heard == {LOOP.num_steps: {"loss": 2.0}}
    names = [identify(one, ROWS).name for one in (job, replace(job, note="another"), replace(job, scale=3.0))]
    assert names[0] == names[1] != names[2] and settings_of(job)["spec"] == {"scale": 2.0}


def test_rows_count_by_key_picture_and_caption(given: Path) -> None:
    job, *_ = whole_jobs(given)
    others = [ROWS[:1], ROWS[::-1], [("k0", "digest 0", "a red ball"), ROWS[1]], [("k0", "x", "a red square"), ROWS[1]]]
    assert len({identify(job, rows).name for rows in [ROWS, *others]}) == 5


def test_weights_count_by_their_bytes_and_not_by_their_path(given: Path, tmp_path: Path) -> None:
    for place, job in enumerate(whole_jobs(given)):
        before = identify(job, ROWS)
        shutil.copytree(given, tmp_path / "moved", dirs_exist_ok=True)
        moved = whole_jobs(tmp_path / "moved")[place]
        folder = tmp_path / "moved" / "one"
        (folder / "config.json").write_text('{"_name_or_path": "elsewhere", "width": 3}')
        for note in ("README.md", "meta.json", "preview.png"):
            (folder / note).write_text("a note")
        assert identify(moved, ROWS) == before
        if not weights_of(job) and not isinstance(job, JudgeJob):  # starts from scratch
            shutil.rmtree(tmp_path / "moved")
            continue
        ours = {"model.safetensors": "oNe", "config.json": '{"width": 4}'}
        for file, text in ({"open_clip_model.safetensors": "oNe"} if isinstance(job, JudgeJob) else ours).items():
            kept = (folder / file).read_text()
            (folder / file).write_text(text)
            assert identify(moved, ROWS).name != before.name
            (folder / file).write_text(kept)
        shutil.rmtree(tmp_path / "moved")
    gone = next(one for one in whole_jobs(tmp_path / "moved") if getattr(one, "start_from", None))
    with pytest.raises(ValueError, match="no weights to start from"):
        identify(gone, ROWS)


# --- the same, with trainings ---


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_toy_shards(tmp_path_factory.mktemp("corpus"), num_images=24)


@pytest.fixture(scope="module")
def autoencoder(corpus: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    return trainings.train_autoencoder(*autoencoder_job(corpus, folder)).folder / "result"


@pytest.fixture(scope="module")
def alone(corpus: tuple[Path, Path], autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was not interrupted or changed."""
    folder = tmp_path_factory.mktemp("alone")
    return trainings.train_denoiser(*denoiser_job(corpus, folder, autoencoder)).folder / "result"


def read_files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def stop_after(num: int):
    counts = iter(range(1, 1000))
    return lambda: next(counts) == num


HOWS = [
    (owner, field)
    for owner, field in FIELDS
    if owner in (LoopConfig, DenoiserTrainingConfig, DenoiserJob) and counts_of(owner)[field] in (HOW, STOPPING)
]


@pytest.mark.parametrize(("owner", "field"), HOWS, ids=[f"{owner.__name__}.{field}" for owner, field in HOWS])
def test_other_settings_that_do_not_decide_the_result_continue_from_the_state(
    given: Path,
    corpus: tuple[Path, Path],
    autoencoder: Path,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    field: str,
) -> None:
    # compiled blocks round otherwise and take minutes; test_training_compiling.py runs them
    monkeypatch.setattr("emu_models.training.compiling.find_fault", lambda device: "this test does not compile")
    torch.cpu._is_amx_tile_supported = lambda: False
    job, running = denoiser_job(corpus, tmp_path, autoencoder, stop_requested=stop_after(3))
    with pytest.raises(Interrupted):
        trainings.train_denoiser(job, running)
    result = trainings.train_denoiser(changed(job, owner, field, other_values(given)[owner][field]))
    assert result.timings["resumed_from"] == 3
    mine, theirs = read_files(result.folder / "result"), read_files(alone)
    beside = {"search.jsonl"} if field == "stop_found_in" else set()  # the curves of that training
    assert mine.keys() == theirs.keys() | beside
    if field != "micro_batch_size":  # which adds in another order
        other = {"prompts": {"preview.png", "meta.json"}, "validate_every": {"metrics.jsonl", "meta.json"}}
        other["guidance_scale"] = other["prompts"]
        assert {name for name in theirs if mine[name] != theirs[name]} <= other.get(field, set())


def test_settings_that_decide_the_result_start_anew_and_the_old_training_is_found_again(
    corpus: tuple[Path, Path], autoencoder: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = denoiser_job(corpus, tmp_path, autoencoder)
    second = denoiser_job(corpus, tmp_path, autoencoder, replace(LOOP, learning_rate=2e-3))
    a = trainings.train_denoiser(*first)
    states = read_files(a.folder / "states")
    with pytest.raises(Interrupted):
        trainings.train_denoiser(second[0], Running(stop_requested=stop_after(3)))
    assert read_files(a.folder / "states") == states and read_files(a.folder / "result") == read_files(alone)
    b = trainings.train_denoiser(*second)
    assert b.timings["resumed_from"] == 3 and b.folder.parent == a.folder.parent != b.folder

    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr(trainings, "run_training", refuse)
    monkeypatch.setattr(trainings, "encode_moments", refuse)
    again = trainings.train_denoiser(*first)
    assert again == replace(a, timings={})
    assert read_files(again.folder / "result") == read_files(alone)


def test_another_preview_is_drawn_and_nothing_else_changes(
    corpus: tuple[Path, Path], autoencoder: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = denoiser_job(corpus, tmp_path, autoencoder)
    folder = trainings.train_denoiser(job).folder / "result"
    monkeypatch.setattr(trainings, "run_training", None)
    before = read_files(folder)
    trainings.train_denoiser(replace(job, prompts=("a green square",)))
    other = read_files(folder)
    assert {name for name in before if before[name] != other.get(name)} == {"preview.png", "meta.json"}
    trainings.train_denoiser(replace(job, prompts=()))
    assert before.keys() - read_files(folder).keys() == {"preview.png"}
    trainings.train_denoiser(job)
    assert read_files(folder) == before == read_files(alone)


@pytest.mark.parametrize("what", ["picture", "caption", "autoencoder"])
def test_another_input_at_the_same_path_starts_anew(
    corpus: tuple[Path, Path], autoencoder: Path, tmp_path: Path, what: str
) -> None:
    shutil.copytree(corpus[0].parent, tmp_path / "corpus")
    shutil.copytree(autoencoder, tmp_path / "autoencoder")
    mine = (tmp_path / "corpus" / "shards", tmp_path / "corpus" / "rows.parquet")
    job, running = denoiser_job(mine, tmp_path, tmp_path / "autoencoder", stop_requested=stop_after(3), prompts=())
    with pytest.raises(Interrupted):
        trainings.train_denoiser(job, running)
    if what == "caption":
        rows = pd.read_parquet(mine[1])
        rows.assign(caption=["another", *rows["caption"][1:]]).to_parquet(mine[1])
    elif what == "picture":
        shutil.rmtree(tmp_path / "corpus")
        (tmp_path / "corpus").mkdir()
        write_toy_shards(tmp_path / "corpus", 24, side=40)
    else:
        trainings.train_autoencoder(*autoencoder_job(corpus, tmp_path / "other", replace(LOOP, seed=3)))
        shutil.rmtree(tmp_path / "autoencoder")
        shutil.copytree(result_of(tmp_path / "other"), tmp_path / "autoencoder")
    result = trainings.train_denoiser(job)
    assert result.timings["resumed_from"] == 0
    assert len(list((tmp_path / "states").iterdir())) == 2


def test_the_state_of_another_training_is_neither_used_nor_overwritten(corpus, tmp_path: Path) -> None:
    job, running = autoencoder_job(corpus, tmp_path, stop_requested=stop_after(3))
    with pytest.raises(Interrupted):
        trainings.train_autoencoder(job, running)
    (folder,) = (tmp_path / "states").iterdir()
    state = folder / "states" / "000000003"
    meta = json.loads((state / "meta.json").read_text())
    write_json(state / "meta.json", {**meta, "fingerprint": "another"})
    before = read_files(folder / "states")
    with pytest.raises(ValueError, match="the state of another training"):
        trainings.train_autoencoder(job, running)
    assert read_files(folder / "states") == before
