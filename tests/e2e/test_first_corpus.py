"""docs/first-corpus.md on a small poisoned corpus: real sizes, every kind of damage, all assets up to the filtered
corpus green, and a row for everything. As a campaign, the whole graph.
"""

import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from scripts.poisoned_corpus import DAMAGES, main
from tests.e2e.conftest import make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def paint(folder: Path, num: int) -> None:
    """Return pictures of 520 px, each of something else."""
    for i in range(num):
        coarse = np.random.default_rng(i).integers(0, 256, (5, 6, 3)).astype(np.uint8)
        place = folder / f"kind_{i % 3}" / f"thing number {'abcdefghij'[i % 10]}.{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((624, 520), Image.Resampling.BICUBIC).save(place)


def test_a_poisoned_corpus_reaches_the_filtered_corpus_and_every_member_has_a_row(tmp_path: Path) -> None:
    paint(tmp_path / "pictures", 12)
    main(tmp_path / "pictures", tmp_path / "mine", num=90, share=0.8, seed=1)
    done = pd.read_csv(tmp_path / "mine" / "damage.csv")
    assert len(set(done["damage"])) >= len(DAMAGES) - 8
    project = make_project(tmp_path / "project")
    project.must("emu", "profile", "photos", "--overwrite")
    assert "can be read" in project.must("emu", "ingest", str(tmp_path / "mine"))
    project.must("emu", "materialize", "corpus_report", "--upstream", timeout=900)
    project.must("emu", "materialize", "filtered_corpus")
    ledger = pd.read_parquet(project.root / "data/filtered/ledger")
    rows = pd.concat([pd.read_parquet(path) for path in (tmp_path / "mine").glob("*.parquet")])
    keys = set(rows["key"])
    for path in (tmp_path / "mine").glob("*.tar"):
        with tarfile.open(path) as tar:
            members = [name for name in tar.getnames() if name.endswith(".txt")]
        twice = len(members) - len(set(members))
        strangers = {name.partition(".")[0] for name in members} - keys
        assert twice and strangers
        assert len(ledger) == len(rows) + twice + len(strangers)
    assert ledger["key"].is_unique and ledger["first_failed_gate"].notna().all() and ledger["kept"].any()
    assert not list((project.root / "data/raw").glob("*.tar"))
    assert (project.root / "data/reports/corpus_report/to_label.csv").is_file()


@pytest.mark.campaign
def test_the_whole_graph_is_green_on_a_poisoned_corpus(tmp_path: Path) -> None:
    """Including trainings, votes, reports and the registry, with the sizes and thresholds of the smoke profile."""
    paint(tmp_path / "pictures", 60)
    main(tmp_path / "pictures", tmp_path / "mine", num=240, share=0.5, seed=2)
    project = make_project(tmp_path / "project")
    project.must("emu", "profile", "smoke", "--overwrite")
    project.must("emu", "ingest", str(tmp_path / "mine"))
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["filtered_corpus"]["max_concept_share"] = 1.0  # the captions of these pictures are of one concept
    (project.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    project.must("emu", "materialize", timeout=1200)
    assert "nothing was done" in project.must("emu", "materialize")
    ledger = pd.read_parquet(project.root / "data/filtered/ledger")
    assert {"undecodable", "duplicate"} & set(ledger["first_failed_gate"]) and ledger["kept"].any()
    assert (project.root / "data/registered_model.json").is_file()
