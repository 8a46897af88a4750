"""What is measured of pictures, who stays, and where that is computed: alignment_model, filter_ledger, filtered_corpus,
engine."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from emu_steps.params.kinds import (
    Batch,
    Cosine,
    Count,
    Few,
    LearningRate,
    Number,
    Section,
    Seed,
    Share,
    Steps,
    Text,
    Whole,
    refuse,
)

# px per side; open_clip's ModifiedResNet, which is trained here, halves a picture five times
EncoderPixels = Annotated[Whole, Field(ge=32, le=1024, multiple_of=32)]


class AlignmentModel(Section):
    """num_folds: each picture is scored by the model that did not see it; so many models are trained. image_size:
    px per side, a multiple of 32. num_steps: optimiser steps of each. batch_size: pictures of a step; each is
    compared with all distinct captions. learning_rate: AdamW's peak. seed: of first weights and order."""

    num_folds: Annotated[Whole, Field(ge=2, le=100)]
    image_size: EncoderPixels
    num_steps: Steps
    batch_size: Batch
    learning_rate: LearningRate
    seed: Seed


class Policy(Section):
    """Thresholds of the gates; null switches one off where it may be null. The raw values are kept, so a change here
    needs no model. emu_data.ledger.LIMITS says which measured column each is held against.

    min_side: px of the shorter side. max_aspect: longer side / shorter side. min_words, min_characters: of the caption.
    max_unsafe: probability. max_text_area, max_largest_text_box, max_read_text_area: share of the picture under what
    looks like words, under the largest such box, under words that were read. max_words_in_picture: words that were
    read. min_alignment_rank: share of other captions that must fit less well. min_letter_share: letters / characters of
    the caption. min_distinct_word_share: different words / words of it. max_occurrences: of the caption in the corpus.
    min_alignment: cosine of picture and caption. min_aesthetics: in the units of signals.aesthetics_head, or standard
    deviations where there is none. min_popularity: in the units of signals.popularity_column. These two may be any
    number, since the units are the user's.
    """

    min_side: Annotated[Whole, Field(ge=1, le=100_000)]
    max_aspect: Annotated[Number, Field(ge=1, le=1000)]
    min_words: Annotated[Whole, Field(ge=0, le=1000)]
    min_characters: Annotated[Whole, Field(ge=0, le=10_000)]
    max_unsafe: Share
    max_text_area: Share | None
    min_alignment_rank: Share
    min_letter_share: Share | None = None
    min_distinct_word_share: Share | None = None
    max_occurrences: Count | None = None
    max_largest_text_box: Share | None = None
    max_read_text_area: Share | None = None
    max_words_in_picture: Annotated[Whole, Field(ge=0, le=10_000)] | None = None
    min_alignment: Cosine | None = None
    min_aesthetics: Number | None = None
    min_popularity: Number | None = None


class Signals(Section):
    """How pictures are measured; a change of it measures again.

    alignment_weights: a folder or name of open_clip weights to embed and to score with; null takes alignment_model's.
    concepts: name -> descriptions that captions are compared with (the signal `concept`), for filtered_corpus' quotas.
    canvas: px, of the text detector, a multiple of 32 (CRAFT's stride): 96 for drawings of 128 px, 384 for photographs.
    words_between: areas of text, shares of the picture, between which the words are counted; null counts none.
    mirrored_alignment: the picture's mirror image is scored too. aesthetics_head: a path, see `emu aesthetics-head`;
    null measures richness. unsafe_detector zero_shot and the concepts by the picture need alignment_weights.
    unsafe_column and popularity_column are the input's, null for none.
    """

    alignment_weights: Text | None = None
    concepts: Annotated[dict[Text, Annotated[list[Text], Field(min_length=1)]], Field(min_length=1)]

    canvas: Annotated[Whole, Field(ge=32, le=4096, multiple_of=32)] = 96
    words_between: tuple[Share, Share] | None = None
    mirrored_alignment: bool = False
    aesthetics_head: Text | None = None
    unsafe_detector: Literal["open_nsfw", "zero_shot", "none"] = "open_nsfw"
    unsafe_column: Text = "punsafe"
    popularity_column: Text | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        wrong: dict[Any, str] = {}
        if self.words_between and self.words_between[0] > self.words_between[1]:
            wrong["words_between",] = "the first area must not be larger than the second"
        if self.unsafe_detector == "zero_shot" and not self.alignment_weights:
            wrong["unsafe_detector",] = "zero_shot needs alignment_weights; set them, or open_nsfw or none here"
        refuse(self, wrong)
        return self


class FilterLedger(Section):
    """control_share: of the keys that are measured in full, whatever the gates say."""

    control_share: Share = 0.01
    signals: Signals
    policy: Policy

    @model_validator(mode="after")
    def _thresholds_are_measured(self) -> Self:
        wrong: dict[Any, str] = {}
        for name, signal in (
            ("max_read_text_area", "words_between"),
            ("max_words_in_picture", "words_between"),
            ("min_popularity", "popularity_column"),
        ):
            if getattr(self.policy, name) is not None and getattr(self.signals, signal) is None:
                wrong["policy", name] = f"nothing measures it: set filter_ledger.signals.{signal}, or null here"
        refuse(self, wrong)
        return self


class FilteredCorpus(Section):
    """num_images: how many are kept, exactly. max_hash_distance: bits of 64 by which perceptual hashes of near-twins
    may differ; the bands find no more than 3. max_concept_share, min_concept_share: of num_images, that a concept may
    have and must have (as far as it has as many). keep_best_by: columns of the ledger by which the best of a cluster of
    near-twins is chosen, the larger the better. order_by: the column of which a concept's largest values are taken;
    null takes them by chance, by `seed`. See emu_data.selection.SelectionPolicy.
    """

    num_images: Count
    max_hash_distance: Annotated[Whole, Field(ge=0, le=3)]
    max_concept_share: Annotated[Number, Field(gt=0, le=1)]
    min_concept_share: Share = 0.0
    keep_best_by: list[str] = ["min_side", "alignment_rank", "num_bytes"]
    order_by: str | None = None
    seed: Seed

    @model_validator(mode="after")
    def _shares_in_order(self) -> Self:
        if self.min_concept_share > self.max_concept_share:
            refuse(self, {("min_concept_share",): f"must not be above max_concept_share, {self.max_concept_share}"})
        return self


class EngineSection(Section):
    """Where the pictures are measured: how, not what. No asset's section, so that it makes nothing stale.

    name: local is children on this machine, one per core by default; ray is actors on the running cluster at
    ray_address ("auto", "HOST:PORT", "ray://HOST:PORT"), as many as fit by default. num_workers: children or actors.
    threads_per_worker: compute threads of each. max_memory_gib: GiB that one worker's child may hold; a picture that
    needs more gets a reason instead of values. num_gpus_per_actor: 0.5 lets two share a GPU; above 1 whole ones, as
    Ray wants it.
    """

    name: Literal["local", "ray"] = "local"
    num_workers: Few | None = None
    threads_per_worker: Annotated[Few, Field(le=1024)] = 1
    max_memory_gib: Annotated[Number, Field(gt=0, le=10_000)] = 8.0
    ray_address: Annotated[str, Field(pattern=r"^(auto|(ray://)?[\w.\-\[\]:]+:\d{1,5})$")] = "auto"
    num_gpus_per_actor: Annotated[Number, Field(ge=0, le=64)] = 0.0

    @model_validator(mode="after")
    def _gpus_are_shared_or_whole(self) -> Self:
        if self.num_gpus_per_actor > 1 and self.num_gpus_per_actor % 1:
            refuse(self, {("num_gpus_per_actor",): "above 1 it must be a whole number of GPUs"})
        return self
