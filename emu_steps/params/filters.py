"""What is measured on pictures, which pictures are kept, and where that is computed: alignment_model, filter_ledger,
corpus_report, filtered_corpus, engine.
"""

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
    StepsOrNone,
    Text,
    Whole,
    refuse,
)

# px per side; open_clip's ModifiedResNet, which is trained here, halves a picture five times.
EncoderPixels = Annotated[Whole, Field(ge=32, le=1024, multiple_of=32)]


class AlignmentTraining(Section):
    """How an open_clip model is trained on the corpus. image_size: px per side, a multiple of 32. num_steps: optimiser
    steps per model. batch_size: pictures per step; each is compared with all distinct captions. learning_rate,
    warmup_steps, ema_decay, validate_every, max_rise: as in Training; the defaults are chosen here. seed: of initial
    weights and order.
    """

    image_size: EncoderPixels
    num_steps: Steps
    batch_size: Batch
    learning_rate: LearningRate
    warmup_steps: StepsOrNone = 20
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    validate_every: Steps = 60
    max_rise: Annotated[Number, Field(ge=0, le=100)] = 0.0
    seed: Seed


class AlignmentModel(AlignmentTraining):
    """The open_clip models that score how well captions fit. num_folds: number of models; each picture is scored by the
    model whose training held it out. 0 trains none, nor does any number if filter_ledger.signals.alignment_weights are
    given, which score captions then.
    """

    num_folds: Annotated[Whole, Field(ge=0, le=100)]

    @model_validator(mode="after")
    def _one_is_not_enough(self) -> Self:
        if self.num_folds == 1:
            refuse(self, {("num_folds",): "a model must not score what it was trained on: give 0, or 2 and more"})
        return self


class Policy(Section):
    """Thresholds of the gates; null switches a gate off, if its type allows null. The raw values are kept, so a change
    here runs no model. emu_data.ledger.LIMITS says which measured column each threshold applies to.

    min_side: px of the shorter side. max_aspect: longer side / shorter side. min_detail: share of the picture on which
    anything is drawn. min_words, min_characters: of the caption. max_unsafe: probability. max_text_score: 0..1, how
    sure the detector may be that there is text, of any script, size or direction. max_text_reading: 0..1, how sure the
    recogniser may be of letters where the detector is unsure (a picture is dropped for either; what cannot be read does
    not excuse it). max_text_area, max_largest_text_box, max_read_text_area: share of the picture that is covered by
    apparent words, by the largest box of them, by words that were read. max_words_in_picture: words that were read.
    min_alignment_rank: share of other captions that must fit less well. min_letter_share: letters / characters of the
    caption. min_distinct_word_share: distinct words / words of it. max_occurrences: of the caption in the corpus.
    min_alignment: cosine of picture and caption. min_aesthetics: in the units of signals.aesthetics_head, or standard
    deviations without one. min_popularity: in the units of signals.popularity_column. These two may be any number,
    since the user decides the units.
    """

    min_side: Annotated[Whole, Field(ge=1, le=100_000)]
    max_aspect: Annotated[Number, Field(ge=1, le=1000)]
    min_words: Annotated[Whole, Field(ge=0, le=1000)]
    min_characters: Annotated[Whole, Field(ge=0, le=10_000)]
    max_unsafe: Share
    max_text_area: Share | None
    min_detail: Share | None = None
    min_alignment_rank: Share | None
    min_letter_share: Share | None = None
    min_distinct_word_share: Share | None = None
    max_occurrences: Count | None = None
    max_text_score: Share | None = None
    max_text_reading: Share | None = None
    max_largest_text_box: Share | None = None
    max_read_text_area: Share | None = None
    max_words_in_picture: Annotated[Whole, Field(ge=0, le=10_000)] | None = None
    min_alignment: Cosine | None = None
    min_aesthetics: Number | None = None
    min_popularity: Number | None = None


class Signals(Section):
    """How pictures are measured; a change here measures them again.

    alignment_weights: open_clip weights for embedding and scoring, as a folder, a name with its tag (NAME@TAG), or a
    file with both (NAME@TAG@FILE); null uses alignment_model's. concepts: name -> descriptions that captions (or
    pictures, with alignment_weights) are compared with, for filtered_corpus' quotas. canvas: px per side at which the
    text detector works, a multiple of 32 (CRAFT's stride): 96 for drawings of 128 px, 384 for photographs.
    words_between: words are counted only if the area of text, a share of the picture, is between these two; null never
    counts words. scores_read: text scores between which the detector is unsure, so that the words are read as evidence
    for text (policy.max_text_reading); null reads none. mirrored_alignment: whether the mirrored picture is scored too.
    aesthetics_head: a path, see `emu aesthetics-head`; null measures richness. unsafe_detector: zero_shot needs
    alignment_weights. unsafe_column, popularity_column: of the input; popularity_column may be null.
    """

    alignment_weights: Text | None = None
    concepts: Annotated[dict[Text, Annotated[list[Text], Field(min_length=1)]], Field(min_length=1)]

    canvas: Annotated[Whole, Field(ge=32, le=4096, multiple_of=32)] = 96
    words_between: tuple[Share, Share] | None = None
    scores_read: tuple[Share, Share] | None = None
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
        if self.scores_read and self.scores_read[0] > self.scores_read[1]:
            wrong["scores_read",] = "the first score must not be larger than the second"
        if self.unsafe_detector == "zero_shot" and not self.alignment_weights:
            wrong["unsafe_detector",] = "zero_shot needs alignment_weights; set them, or open_nsfw or none here"
        refuse(self, wrong)
        return self


class FilterLedger(Section):
    """Measuring and gates. control_share: share of keys that every signal measures, whatever the gates decide."""

    control_share: Share = 0.01
    signals: Signals
    policy: Policy

    @model_validator(mode="after")
    def _thresholds_are_measured(self) -> Self:
        wrong: dict[Any, str] = {}
        for name, signal in (
            ("max_read_text_area", "words_between"),
            ("max_words_in_picture", "words_between"),
            ("max_text_reading", "scores_read"),
            ("min_popularity", "popularity_column"),
        ):
            if getattr(self.policy, name) is not None and getattr(self.signals, signal) is None:
                wrong["policy", name] = f"nothing measures it: set filter_ledger.signals.{signal}, or null here"
        refuse(self, wrong)
        return self


class FilteredCorpus(Section):
    """The gates that need the whole corpus. num_images: exactly how many pictures are kept; null keeps all that no gate
    dropped, whatever their concepts. min_curated_side: px of the shorter side that a picture needs to be curated; null
    for any; smaller ones that passed filter_ledger.policy may still be pretrained on. min_twin_similarity: 0.5..1,
    between the looks of a near-twin and those of the centre of its cluster (emu_data.alike.similarity).
    max_concept_share, min_concept_share: the largest and smallest share of num_images that a concept may have (a
    concept with too few pictures gives all it has). keep_best_by: columns of the ledger that decide which picture of a
    cluster of near-twins is kept; larger is better. order_by: a column whose largest values are kept in each concept;
    null chooses at random, by `seed`. See emu_data.corpus_gates.CorpusPolicy.
    """

    num_images: Count | None
    min_curated_side: Annotated[Whole, Field(ge=1, le=100_000)] | None = None
    min_twin_similarity: Annotated[Number, Field(ge=0.5, le=1)]
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


class CorpusReport(Section):
    """The report on the corpus before anything is dropped. num_examples: pictures on each side of a threshold.
    num_to_label: random pictures that each gate dropped, which a person may label. labels: a CSV of such labels, a copy
    of the report's to_label.csv with y (rightly dropped) or n in its last column; null for none.
    """

    num_examples: Few
    num_to_label: Few
    labels: Text | None = None


class EngineSection(Section):
    """Where the pictures are measured. It does not affect results, so it does not belong to an asset, and a change
    makes nothing stale.

    name: `local` uses child processes on this machine, by default one per core; `ray` uses actors on the running
    cluster at ray_address ("auto", "HOST:PORT", "ray://HOST:PORT"), by default as many as fit. num_workers: children or
    actors. threads_per_worker: compute threads of each. max_memory_gib: GiB that one worker's child may hold; a picture
    that needs more gets a reason instead of values. num_gpus_per_actor: 0.5 lets two actors share a GPU; above 1 it
    must be a whole number, which Ray requires.
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


class FilterSections(Section):
    """What is measured on each picture, and which pictures are kept. engine: how, which does not affect results."""

    engine: EngineSection = EngineSection()
    alignment_model: AlignmentModel
    filter_ledger: FilterLedger
    corpus_report: CorpusReport
    filtered_corpus: FilteredCorpus
