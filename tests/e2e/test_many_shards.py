"""The corpus's job is one run, whatever the number of shards, with the real engine and signals."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from emu_data.samples import Sample, make_key
from emu_data.shards import write_shard
from tests.e2e.conftest import make_project
from tests.profiles import text_of
from tests.shards import encode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
NAMES = [
    "red apple",
    "a dog",
    "a smiling face",
    "a yellow car",
    "an old tree",
    "a brass key",
    "a round ball",
    "a pizza",
]
JOB = """
import json
import dagster as dg
from emu_dagster.definitions import defs
instance = dg.DagsterInstance.get()
done = defs.resolve_job_def("filter_shards").execute_in_process(instance=instance, raise_on_error=False)
reported = [entry.user_message for entry in instance.all_logs(done.run_id) if entry.user_message]
print(json.dumps({"success": done.success, "num_runs": len(instance.get_runs()), "reported": reported}))
"""


def write_corpus(folder: Path, num_shards: int, num_rows: int) -> None:
    """Write shards of noise in 64 px, all different."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for shard in range(num_shards):
        samples = []
        for row in range(num_rows):
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((64, 64), Image.Resampling.NEAREST)
            samples.append(Sample(make_key(shard, row), encode(picture), NAMES[(shard + row) % len(NAMES)]))
        rows = [{"key": s.key, "caption": s.caption, "status": "success", "width": 64, "height": 64} for s in samples]
        write_shard(folder, shard, samples, pd.DataFrame(rows))


@pytest.mark.campaign
@pytest.mark.parametrize(("num_shards", "num_rows"), [(1, 20), (2, 10), (500, 1)])
def test_the_corpus_job_is_one_run(tmp_path: Path, num_shards: int, num_rows: int):
    project = make_project(tmp_path / "project")
    write_corpus(tmp_path / "source", num_shards, num_rows)
    params = yaml.safe_load(text_of("smoke"))
    params["raw_corpus"] = {
        **{"source": "img2dataset", "path": str(tmp_path / "source"), "samples_per_shard": num_rows, "seed": 0}
    }
    params["filter_ledger"]["signals"] |= {"words_between": None, "unsafe_detector": "none"}
    params["filter_ledger"]["policy"] |= {"max_read_text_area": None}
    params["filtered_corpus"] |= {"num_images": 8, "max_concept_share": 1.0}
    (project.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    done = json.loads(project.must("python", "-c", JOB, timeout=1200).splitlines()[-1])
    assert done["success"] and done["num_runs"] == 1, done["reported"][-5:]
    for folder in ("data/ledger", "data/filtered/ledger"):
        assert len(list((project.root / folder).glob("*.parquet"))) == num_shards
    if num_shards > 100:  # the pilot, which finds the order of the signals, measures a few
        assert any("filter_ledger: shard " in line and f" of {num_shards}" in line for line in done["reported"])
    assert len(pd.read_parquet(project.root / "data/filtered/manifest.parquet")) == 8
