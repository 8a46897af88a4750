"""params.yaml refuses values without meaning, says where they are, and says what is possible."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from emu_steps import params as package
from emu_steps.params import Params, Section, check_params, evaluation, read_params, references
from tests.profiles import text_of

TOP = Path(__file__).parents[2]

# The values with which each numeric entry is tried. (True is a number to Python, and text to nobody.)
ABSURD = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "-1": -1,
    "1e30": 1e30,
    "10**40": 10**40,
    "true": True,
    "list": [1],
    "empty": "",
}
USERS_UNITS = "in units that the user brings, a head's or a column's: any number is one"
A_SIMILARITY = "a cosine may be negative"
A_SWITCH = "a switch"
NO_COMMAND = "one process, without a launcher"
# dotted name -> absurd values that it accepts all the same, and why
TAKEN: dict[str, tuple[set[str], str]] = {
    "filter_ledger.policy.min_aesthetics": ({"-1", "1e30", "10**40"}, USERS_UNITS),
    "filter_ledger.policy.min_popularity": ({"-1", "1e30", "10**40"}, USERS_UNITS),
    "filter_ledger.policy.min_alignment": ({"-1"}, A_SIMILARITY),
    "filter_ledger.signals.mirrored_alignment": ({"true"}, A_SWITCH),
    "raw_corpus.copy": ({"true"}, A_SWITCH),
    "toy": ({"true"}, A_SWITCH),
    "autoencoder_study.linear_shortcut": ({"true"}, A_SWITCH),
    "pretrained_low.denoiser.attention.0": ({"true"}, A_SWITCH),
    "pretrained_low.denoiser.size_conditioning": ({"true"}, A_SWITCH),
    "quality_tuned.whole_set": ({"true"}, A_SWITCH),
    "pretrained_low.denoiser.attention.1": ({"true"}, A_SWITCH),
    **{
        f"launch.trainings.{name}.{switch}": ({"true"}, A_SWITCH)
        for switch in ("gradient_checkpointing", "compile")
        for name in ("pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned")
    },
    "launch.command": ({"empty"}, NO_COMMAND),
}
A_LABEL = "what people call it; it refers to nothing"
A_PLACE = "a path or an address, which may be made later or lie on another machine; read when it is used"
OF_THE_INPUT = "a column of the corpus that the user brings, which nobody has read yet"
A_WEIGHT = "a folder, or a name of weights that a library knows"
A_TEXT = "what is written into a prompt or compared with a caption"
# start of a dotted name -> why any text is valid there
FREE = {
    "profile": A_LABEL,
    "registered_model.name": A_LABEL,
    "raw_corpus.subjects": "looked up in emoji.json, which the first materialisation brings",
    "raw_corpus.path": A_PLACE,
    "raw_corpus.base": A_PLACE,
    "raw_corpus.image_column": OF_THE_INPUT,
    "raw_corpus.caption_column": OF_THE_INPUT,
    "filter_ledger.signals.unsafe_column": OF_THE_INPUT,
    "filter_ledger.signals.popularity_column": OF_THE_INPUT,
    "filter_ledger.signals.aesthetics_head": A_PLACE,
    "corpus_report.labels": A_PLACE,
    "filter_ledger.signals.alignment_weights": A_WEIGHT,
    "filter_ledger.signals.concepts": A_TEXT,
    "faithfulness_judge.weights": A_WEIGHT,
    "pretrained_low.text_encoder": A_WEIGHT,
    "autoencoder_study.inception": A_PLACE,
    "automatic_report.wanted.name": A_LABEL,
    "automatic_report.wanted.column": OF_THE_INPUT,
    "automatic_report.wanted.contains": A_TEXT,
    "tuning_study.chosen_by": "a column of the ledger, which is not made yet",
    "autoencoder_study.losses.perceptual.path": A_PLACE,
    "autoencoder.losses.perceptual.path": A_PLACE,
    "quality_tuned.start_from": A_PLACE,
    "quality_tuned.lora.target_modules": "ends of names of layers of a checkpoint that the user brings",
    "evaluation_images.fixed_prompts": A_TEXT,
    "evaluation_images.prompts_file": A_PLACE,
    "evaluation_images.contestants": A_PLACE,
    "launch.command": "a program of this machine or of the cluster's",
    **{
        f"launch.trainings.{name}.local_copies": A_PLACE
        for name in ("pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned")
    },
}


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The demo's params with every entry written out, those left to their defaults too, and every optional section; of
    subjects, all of one kind, one is enough."""
    given = yaml.safe_load(text_of("emoji"))
    given["raw_corpus"]["subjects"] = {"animal": [{"name": "cat", "caption": "a cat"}]}
    given["filter_ledger"]["signals"]["popularity_column"] = "likes"
    given["quality_tuned"]["lora"] = {"rank": 4, "alpha": 4}
    return Params.model_validate(given).model_dump(by_alias=True)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the paths of all entries that are neither a mapping nor a list, including null ones."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if parts is None:
        yield path
    else:
        for name, part in parts:
            yield from leaves(part, (*path, name))


def with_entry(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    items = dict(value.items() if isinstance(value, dict) else enumerate(value))
    items[path[0]] = with_entry(items[path[0]], path[1:], new)
    return items if isinstance(value, dict) else list(items.values())


def complaint(given: dict[str, Any]) -> str:
    """Return the error for these params; empty if they are valid."""
    try:
        check_params(given)
    except ValueError as error:
        return str(error)
    return ""


def is_named(name: str, reported: str) -> bool:
    """Return whether a message is about an entry, or about the section that the entry must fit into."""
    parts = name.split(".")
    wrong = [line.strip().split(": ")[0] for line in reported.splitlines()[1:]]
    return any(one.startswith(".".join(parts[:2])) or name.startswith(f"{one}.") for one in wrong)


def test_every_entry_refuses_absurd_values_and_says_where(whole):
    accepted: dict[str, set[str]] = {}
    for path in leaves(whole):
        name = ".".join(map(str, path))
        for label, value in ABSURD.items():
            reported = complaint(with_entry(whole, path, value))
            if not reported:
                accepted.setdefault(name, set()).add(label)
            else:
                assert is_named(name, reported), f"{name} = {label}: {reported}"
                assert "Traceback" not in reported
    assert accepted == {name: labels for name, (labels, _) in TAKEN.items()}


def test_every_name_is_checked_or_has_a_reason_not_to_be(whole):
    for path in leaves(whole):
        name = ".".join(map(str, path))
        if any(f"{name}.".startswith(f"{free}.") for free in FREE):
            continue
        reported = complaint(with_entry(whole, path, "no such thing"))
        assert reported and is_named(name, reported), name


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        (("autoencoder", "variant"), "c99", ["c4", "c8", "c16", "c16_fourier"]),
        (("pretrained_mid", "gates"), ["readable", "nix"], ["geometry", "text_area", "duplicate"]),
        (("raw_corpus", "styles"), ["google", "nix"], ["google", "twitter", "fluent3d"]),
        (("filtered_corpus", "order_by"), "nix", ["alignment_rank", "num_bytes"]),
        (("filtered_corpus", "keep_best_by"), ["nix"], ["alignment_rank", "num_bytes"]),
        (("launch", "trainings"), {"nix": {}}, ["pretrained_low", "quality_tuned", "autoencoder_study"]),
        (("launch", "strategy"), "nix", ["ddp", "fsdp", "hsdp"]),
        (("raw_corpus", "source"), "nix", ["packages", "img2dataset", "folder", "table"]),
        (("raw_corpus", "subjects", "animal"), [{"name": "cat", "nix": "x"}], ["name", "caption"]),
        (("filter_ledger", "signals", "unsafe_detector"), "nix", ["open_nsfw", "zero_shot", "none"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(whole, path, value, allowed):
    reported = complaint(with_entry(whole, path, value))
    assert ".".join(path) in reported
    for name in allowed:
        assert name in reported


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("filtered_corpus", "max_concept_share"), 0.1, "give at least 0.125"),  # of 8 concepts
        (("filtered_corpus", "min_concept_share"), 0.2, "give at most 0.125"),
        (("filter_ledger", "signals", "words_between"), None, "set filter_ledger.signals.words_between"),
        (("filter_ledger", "signals", "words_between"), [0.5, 0.1], "must not be larger"),
        (("filter_ledger", "signals", "scores_read"), [0.5, 0.1], "must not be larger"),
        (("filter_ledger", "policy", "max_text_reading"), 0.5, "set filter_ledger.signals.scores_read"),
        (("filter_ledger", "signals", "unsafe_detector"), "zero_shot", "needs alignment_weights"),
        (("raw_corpus", "damage", "text"), 0.95, "at most 0.9"),
        (("raw_corpus", "damage"), None, "needs it"),
        (("raw_corpus", "styles"), [], "needs it"),
        (("raw_corpus", "storage_options"), {"s3": {"secret": "x"}}, "must not hold secrets"),
        (("pretrained_low", "resolution"), 40, "multiple of 16"),
        (("quality_tuned", "resolution"), 72, "multiple of 16"),
        (("autoencoder", "resolution"), 60, "multiple of 8"),
        (("pretrained_low", "denoiser", "attention"), [True], "one per width"),
        (("evaluation_images", "num_prompts"), 3, "at least 16"),
        (("evaluation_images", "fixed_prompts"), ["a cat", "a cat"], "twice"),
        (("engine", "num_gpus_per_actor"), 1.5, "whole number"),
        (("engine", "ray_address"), "ray://nowhere", "engine.ray_address"),
        (("launch", "command"), 'torchrun "', "quotation"),
        (("launch", "trainings"), {"autoencoder": {"compile": True}}, "only micro_batch_size"),
        (("registered_model", "name"), "a/b", "registered_model.name"),
        (("alignment_model", "image_size"), 48, "multiple of 32"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_words(whole, path, value, words):
    reported = complaint(with_entry(whole, path, value))
    assert words in reported and ".".join(path).split(".")[0] in reported


def test_popularity_is_used_only_if_a_column_gives_it(whole):
    column = ("filter_ledger", "signals", "popularity_column")
    for path, value in (
        (("filter_ledger", "policy", "min_popularity"), 3),
        (("filtered_corpus", "order_by"), "popularity"),
    ):
        given = with_entry(whole, path, value)
        assert complaint(given) == ""
        assert ".".join(path) in complaint(with_entry(given, column, None))


def test_a_provided_checkpoint_sets_its_own_resolution(whole):
    """Its factor is known only once it is loaded."""
    given = with_entry(whole, ("quality_tuned", "resolution"), 72)
    assert complaint(given)
    given = with_entry(given, ("quality_tuned", "start_from"), "models/sd")
    assert complaint(given) == ""


def test_everything_wrong_is_reported_at_once(whole):
    given = with_entry(whole, ("autoencoder", "ema_decay"), 1.99)
    given = with_entry(given, ("filter_ledger", "policy", "max_aspect"), -2)
    reported = complaint(given)
    assert "autoencoder.ema_decay" in reported and "filter_ledger.policy.max_aspect" in reported


def test_what_is_not_yaml_is_one_line(tmp_path):
    for text in ("a: [1", "a: b: c", "\t", "- 1", "12", ""):
        (tmp_path / "params.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"params\.yaml"):
            read_params(tmp_path / "params.yaml")


def test_an_entry_of_an_older_version_is_refused_with_its_new_name(whole):
    reported = complaint({**whole, "appeal_report": {**whole["appeal_report"], "num_raters": 5}})
    assert "appeal_report.num_raters" in reported and "is now appeal_votes.num_raters" in reported


def test_numbers_as_yaml_1_1_reads_them_are_accepted(whole):
    """To YAML 1.1 `1e-3` is a text."""
    assert complaint(with_entry(whole, ("pretrained_low", "learning_rate"), "1e-3")) == ""


def test_every_field_is_explained_in_its_sections_docstring():
    sections = {value for value in vars(package).values() if isinstance(value, type) and issubclass(value, Section)}
    for section in sections - {Section, Params}:
        reported = "".join(
            base.__doc__ or "" for base in section.__mro__ if issubclass(base, BaseModel) and base is not BaseModel
        )
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                continue  # explained there
            assert (field.alias or name) in reported, f"{section.__name__}.{name}"


def test_the_maximum_of_denoising_steps_is_that_of_the_schedule():
    from emu_models.diffusion.schedule import NUM_TIMESTEPS

    assert evaluation.NUM_TIMESTEPS == NUM_TIMESTEPS


def test_pictures_can_be_ordered_by_what_the_filters_measure(whole, tmp_path, monkeypatch):
    """The list of columns to order by is that of the signals that are built."""
    from emu_steps import filtering
    from emu_steps.layout import Layout

    monkeypatch.setattr(filtering, "corpus_name", lambda raw: "none")
    monkeypatch.setattr(filtering, "count_captions", lambda *arguments: None)
    monkeypatch.setattr(filtering.pd, "read_parquet", lambda path: {"caption": ["a"]})
    monkeypatch.setattr(filtering, "shared_encoder", lambda model: None)
    whole = with_entry(whole, ("filter_ledger", "signals", "popularity_column"), "likes")
    for has_alignment in (False, True):
        signals = filtering.build_signals(Layout(tmp_path), Params.model_validate(whole))
        measured = {name for signal in signals for name, dtype in signal.columns.items() if dtype != "string"}
        assert set(references.ledger_columns(has_popularity=True, has_alignment=has_alignment)) == measured
        (Layout(tmp_path).model("alignment_model") / "fold_0").mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (("filter_ledger", "policy", "min_alignment_rank"), 0.5),
        (("filter_ledger", "policy", "min_alignment"), 0.2),
        (("filter_ledger", "signals", "aesthetics_head"), "head.json"),
        (("filtered_corpus", "order_by"), "alignment"),
        (("alignment_model", "num_folds"), 1),
    ],
)
def test_without_a_model_nothing_needs_how_well_captions_fit(entry, value):
    whole = Params.model_validate(yaml.safe_load(text_of("photos"))).model_dump(by_alias=True)
    with pytest.raises(ValidationError, match="nothing measures it|needs an embedding|there is no|must not score"):
        Params.model_validate(with_entry(whole, entry, value))
    if entry[0] != "alignment_model":
        Params.model_validate(with_entry(with_entry(whole, ("alignment_model", "num_folds"), 2), entry, value))


@pytest.mark.parametrize("profile", ["photos", "paper", "emoji"])
def test_weights_that_are_given_spare_the_training_of_alignment_models(profile: str) -> None:
    whole = Params.model_validate(yaml.safe_load(text_of(profile))).model_dump(by_alias=True)
    whole = with_entry(whole, ("alignment_model", "num_folds"), 2)
    assert references.trains_alignment(Params.model_validate(whole))
    given = with_entry(whole, ("filter_ledger", "signals", "alignment_weights"), "ViT-L-14@openai@weights.safetensors")
    params = Params.model_validate(given)
    assert not references.trains_alignment(params) and references.has_alignment(params)
