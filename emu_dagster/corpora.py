"""Where the raw corpus comes from, by params.yaml."""

from pathlib import Path

import pandas as pd

from emu_dagster.layout import Layout
from emu_dagster.params import RawCorpus
from emu_data.files import write_parquet
from emu_data.sources.damage import DamageShares
from emu_data.sources.folder import pack_folder
from emu_data.sources.img2dataset import register_shards
from emu_data.sources.packages import DemoCorpusConfig, build_demo_corpus, read_subjects


def read_corpus(section: RawCorpus, layout: Layout) -> None:
    """Writes data/raw from the source; data/damage.parquet with the truth where the damage was ours, else empty."""
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
    if section.source == "folder":
        pack_folder(Path(section.path), layout.raw, section.samples_per_shard)
    else:
        register_shards(Path(section.path), layout.raw)
    # no damage of ours, so no truth to hold the gates against; the file is there since a stage's outs must be
    write_parquet(layout.damage, pd.DataFrame({"key": pd.Series(dtype="string")}))
