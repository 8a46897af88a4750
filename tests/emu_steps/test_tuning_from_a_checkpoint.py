"""quality_tuned.start_from: what the graph, the jobs and the model card make of a provided checkpoint."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard

from emu_models.latent.jobs import Adapters
from emu_steps.evaluating import nearest_sheet
from emu_steps.layout import Layout
from emu_steps.model_card import write_model_card
from emu_steps.params import Params, read_params
from emu_steps.training_jobs import denoiser_job
from tests.profiles import text_of

TOP = Path(__file__).parent.parent.parent
BROUGHT = "data/brought/sd"


def write_params(project: Path, **changes: Any) -> None:
    params = yaml.safe_load(text_of("smoke"))
    params["quality_tuned"] |= changes
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def trained(project: Path, key: str) -> tuple[Layout, Params, str, dict[str, str]]:
    """Return what a model card is written from, after a training."""
    layout, params = Layout(project), read_params(project / "params.yaml")
    folder = layout.model(key)
    folder.mkdir(parents=True)
    result = {"metrics": {"val_loss": 0.25}, "num_steps": 6, "best_step": 4}
    meta = {"result": result, "num_rows": 40, "num_held_out": 4, "resolution": 64}
    (folder / "meta.json").write_text(json.dumps(meta))
    log = [{"step": 4, "val_loss": 0.2}, {"step": 6, "val_loss": 0.25}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    layout.curated.mkdir(parents=True)
    meta = {"chosen_by": "60 votes of the rubric panel, not people", "captioned_by": "nobody"}
    (layout.curated / "meta.json").write_text(json.dumps(meta))
    inputs = {
        "raw_corpus": "1" * 32,
        "curated_set": "2" * 32 + ".dir",
        params.quality_tuned.start_from: "4" * 32 + ".dir",
    }
    return layout, params, key, inputs


def test_more_steps_than_the_paper_allows_are_refused(project):
    write_params(project, num_steps=15_001)
    with pytest.raises(ValueError, match=r"quality_tuned\.num_steps.*15000"):
        read_params(project / "params.yaml")
    write_params(project, num_steps=15_000, lora={"rank": 0, "alpha": 1.0})
    with pytest.raises(ValueError, match=r"quality_tuned\.lora\.rank"):
        read_params(project / "params.yaml")


def test_the_graph_has_no_pretraining_upstream_of_a_provided_checkpoint(project):
    """In its own process: definitions are made from the params at import."""
    write_params(project, start_from=BROUGHT)
    code = (
        "from emu_dagster.definitions import defs\nimport dagster as dg, json\n"
        "graph = defs.resolve_asset_graph()\n"
        "print(json.dumps({k: sorted(p.to_user_string() for p in graph.get(dg.AssetKey(k)).parent_keys)"
        " for k in ('quality_tuned', 'evaluation_images')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=project)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "quality_tuned": ["curated_set"],
        "evaluation_images": ["filtered_corpus", "quality_tuned"],
    }


def test_the_job_names_the_checkpoint_and_the_adapters(project):
    write_params(project, start_from=BROUGHT, lora={"rank": 4, "alpha": 8.0})
    params, layout = read_params(project / "params.yaml"), Layout(project)
    start_from = layout.root / params.quality_tuned.start_from
    rows = layout.curated / "manifest.parquet"
    job = denoiser_job(layout, params, "quality_tuned", layout.curated, rows, params.quality_tuned, start_from)
    assert job.start_from == project / BROUGHT and job.autoencoder is None
    assert job.adapters == Adapters(4, 8.0, ("to_q", "to_k", "to_v", "to_out.0"))


def test_the_card_of_our_own_model(project):
    write_params(project)
    model = trained(project, "quality_tuned")
    write_model_card(*model)
    card = ModelCard.load(model[0].model("quality_tuned") / "README.md")
    assert card.data.license == "other" and card.data.pipeline_tag == "text-to-image"  # type: ignore[attr-defined]
    for text in ("trust_remote_code=True", "1" * 32, "2" * 32, "4" * 32, "Apache-2.0", "CC-BY-4.0", "0.25"):
        assert text in card.text
    assert "Step 6, the last one, was published, with held-out loss 0.25; the lowest was 0.2 at step 4" in card.text
    assert "Toy scale" in card.text and "chosen by 60 votes of the rubric panel, not people" in card.text
    assert str(project) not in card.text


def test_the_card_of_a_provided_checkpoint_passes_its_licence_on(project):
    write_params(project, start_from=BROUGHT, lora={"rank": 4, "alpha": 8.0})
    model = trained(project, "quality_tuned")
    write_model_card(*model)
    card = ModelCard.load(model[0].model("quality_tuned") / "README.md")
    assert "the checkpoint that was tuned, sd: not stated" in card.text and BROUGHT in card.text
    assert "trust_remote_code" not in card.text and "pytorch_lora_weights.safetensors" in card.text
    (project / BROUGHT).mkdir(parents=True)
    (project / BROUGHT / "README.md").write_text("---\nlicense: openrail++\n---\n# A model\n")
    write_model_card(*model)
    card = ModelCard.load(model[0].model("quality_tuned") / "README.md")
    assert card.data.license == "openrail++"  # type: ignore[attr-defined]


def test_the_nearest_curated_picture_is_beside_each_sample():
    """Ordered by distance, with the sample on the left and the curated picture on the right."""
    colours = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
    samples = np.stack([np.full((8, 8, 3), colours[name], np.uint8) for name in ("red", "green")])
    curated = np.stack([np.full((8, 8, 3), colours[name], np.uint8) for name in ("blue", "red")])
    nearest = pd.DataFrame({"nearest_pixel_key": ["k1", "k0"], "pixel_distance": [0.3, 0.1]})
    prompts = pd.DataFrame({"prompt": ["a red one", "a green one"]})
    sheet = np.asarray(nearest_sheet(prompts, samples, nearest, ["k0", "k1"], curated))
    tiles = [tuple(sheet[50, 4 + i * 100 + 48]) for i in range(4)]
    assert tiles == [colours["green"], colours["blue"], colours["red"], colours["red"]]
