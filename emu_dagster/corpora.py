"""Where the raw corpus comes from, by params.yaml."""

from emu_dagster.layout import Layout
from emu_dagster.params import RawCorpus
from emu_data.sources.damage import DamageShares
from emu_data.sources.packages import DemoCorpusConfig, build_demo_corpus, read_subjects


def read_corpus(section: RawCorpus, layout: Layout) -> None:
    """Writes data/raw from the source; data/damage.parquet with the truth where the damage was ours."""
    if section.source == "packages":
        if section.damage is None:
            raise ValueError("raw_corpus.damage is missing in params.yaml; the demo corpus needs its shares")
        config = DemoCorpusConfig(
            subjects=read_subjects(section.subjects, section.num_subjects_per_concept),
            styles=tuple(section.styles),
            size=section.image_size,
            samples_per_shard=section.samples_per_shard,
            damage=DamageShares(**section.damage.model_dump()),
            seed=section.seed,
        )
        build_demo_corpus(layout.raw, layout.damage, config, layout.cache / "packages")
        return
    if not section.path:
        raise ValueError(f"raw_corpus.path is missing in params.yaml; source {section.source} reads from it")
    raise NotImplementedError
