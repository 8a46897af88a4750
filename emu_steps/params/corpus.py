"""Where pictures come from: raw_corpus."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from emu_steps.params.kinds import Count, Few, Pixels, Section, Seed, Share, Text, refuse, unknown_names

SUBJECT = ("name", "caption")  # entries of a subject; the second is optional


class Damage(Section):
    """Shares (0..1) of the demo corpus's rows that are damaged on purpose, at most 0.9 in total
    (emu_data.sources.damage).

    text: words drawn over the picture. caption: another picture's caption. sliver: cropped to a narrow strip. shrink:
    made tiny. duplicate: added rows that copy another row. unsafe: labelled unsafe. failed: not downloaded.
    """

    text: Share
    caption: Share
    sliver: Share
    shrink: Share
    duplicate: Share
    unsafe: Share
    failed: Share

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        from emu_data.sources.damage_shares import DamageShares

        DamageShares(**self.model_dump())  # raises ValueError
        return self


class RawCorpus(Section):
    """Where the raw corpus comes from. source: `packages` makes the demo corpus; `img2dataset`, `folder` and `table`
    read from `path`, any fsspec address (docs/data.md). `emu ingest` writes these entries; until then `path` may be
    null.

    copy: copy the pictures into data/raw instead of referring to them. storage_options: protocol -> fsspec's options,
    without secrets; their values are not checked here. image_column, caption_column: of a table; null tries the usual
    names. caption_column also applies to a folder's metadata. base: what a table's paths are relative to; null for the
    table's folder. samples_per_shard: rows per shard that is written here.

    The other entries are only for the demo corpus. subjects: concept -> what is drawn, each with its `name` in
    emoji.json and, if people would say something else, a `caption`. num_subjects_per_concept: use only the first few of
    each concept; null uses all. styles: which sets of drawings. image_size: px per side of an undamaged picture.
    damage: see Damage. seed: of the damage.
    """

    source: Literal["packages", "img2dataset", "folder", "table"]
    path: Text | None = None
    copy_files: bool = Field(default=False, alias="copy")
    storage_options: dict[Text, dict[str, Any]] = {}
    image_column: Text | None = None
    caption_column: Text | None = None
    base: Text | None = None
    subjects: dict[Text, list[dict[str, Text]]] = {}
    num_subjects_per_concept: Few | None = None
    styles: list[str] = []
    image_size: Annotated[Pixels, Field(ge=16)] = 128
    samples_per_shard: Annotated[Count, Field(le=10**7)]
    damage: Damage | None = None
    seed: Seed

    @model_validator(mode="after")
    def _names(self) -> Self:
        wrong: dict[Any, str] = {}
        for concept, subjects in self.subjects.items():
            for i, subject in enumerate(subjects):
                if "name" not in subject:
                    wrong["subjects", concept, i] = "a subject needs a name, as in emoji.json"
                wrong |= unknown_names(("subjects", concept, i), subject, SUBJECT)
        if self.styles:
            from emu_data.sources.styles import STYLES

            wrong |= unknown_names(("styles",), self.styles, STYLES)
        if self.source == "packages":
            for name in ("subjects", "styles", "damage"):
                if not getattr(self, name):
                    wrong[name,] = "is missing; source packages, the demo corpus, needs it"
        if self.storage_options:
            from emu_data.addresses import check_options

            try:
                check_options(self.storage_options)
            except ValueError as error:
                wrong["storage_options",] = str(error)
        refuse(self, wrong)
        return self


class CorpusSections(Section):
    """Where the raw pictures come from."""

    raw_corpus: RawCorpus
