"""The stages of each family become jobs, in their order, that start from each other and publish in a folder each."""

import shutil

import pandas as pd
import pytest

from emu_data.files import write_parquet
from emu_models.training.identity import weights_of
from emu_models.training.jobs import from_json, to_json
from emu_steps import families
from emu_steps.families import PRETRAINED, TUNED, model_of, stages_of
from emu_steps.layout import Layout
from tests.profiles import params_of
from tests.shards import write_toy_shards


@pytest.fixture
def layout(tmp_path, monkeypatch) -> Layout:
    layout = Layout(tmp_path / "project")
    shards, rows = write_toy_shards(tmp_path, num_images=8, side=96)
    shutil.copytree(shards, layout.raw)

    def write(layout: Layout, name: str, *others, **more):
        target = layout.cache / "rows" / f"{name}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(target, pd.read_parquet(rows))
        return target

    monkeypatch.setattr(families, "write_gated_rows", write)
    monkeypatch.setattr(families, "write_curated_rows", lambda layout, captions, name: write(layout, name))
    return layout


@pytest.mark.parametrize("profile", ["smoke", "generality"])
def test_every_stage_of_every_family_is_a_job_that_starts_from_earlier_ones(layout, profile):
    params = params_of(profile)
    stages = stages_of(layout, params)
    assert set(stages) == set(params.family_study.families) and stages
    outs = set()
    for family, some in stages.items():
        assert [stage.name for stage in some][-1] == TUNED and PRETRAINED in [stage.name for stage in some]
        done = {}
        for stage in some:
            job = stage.make(done)
            assert from_json(to_json(job)) == job
            assert job.shards == (layout.curated if "tuned" in stage.name else layout.raw)
            before = {path for path in weights_of(job).values() if path != layout.model("autoencoder")}
            assert before <= set(done.values()) and (before or not done)
            outs.add(job.out)
            done[stage.name] = layout.states / family / stage.name
        assert model_of(layout, family, TUNED) in outs
    assert len(outs) == sum(map(len, stages.values()))


def test_without_families_nothing_is_read_or_trained(tmp_path):
    assert stages_of(Layout(tmp_path), params_of("emoji")) == {}
