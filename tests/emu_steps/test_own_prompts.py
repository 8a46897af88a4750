"""Your own prompts: any prompts are drawn, and the reports say what can be said about them and what cannot."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from emu_dagster.registering import judge_reports
from emu_data.files import write_parquet
from emu_data.samples import Sample, make_key
from emu_data.shards import write_manifest, write_shard
from emu_data.votes.rounds import open_log
from emu_data.votes.vote import Vote
from emu_models.evaluation.judge import digest_weights
from emu_models.judge_training import JudgeConfig, JudgeJob, make_judge
from emu_steps.contestants import Drawn, name_of_picture
from emu_steps.evaluating import choose_prompts, draw_contestants, report_automatically
from emu_steps.judging import faithfulness_ballots, report_preference
from emu_steps.layout import Layout
from emu_steps.params import Params, read_params
from emu_steps.voting import recorded_round
from tests.checkpoints import make_checkpoint
from tests.profiles import text_of
from tests.shards import encode
from tests.toy_training import LOOP, places

CORPUS = ["red", "green", "blue", "cyan", "pink", "grey"]
SUITE = ['a sign that says "OPEN \'til 9"', 'ein Fuchs, der "schläft"', "一只红色的苹果", "long " * 300]
SUITE += ["тест", "red"]
LINES = [SUITE[0], "", *SUITE[1:], "  ", SUITE[2]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A project's data: squares in the colours of their captions, some of them curated, a judge trained on them, and a
    tiny model with random weights."""
    root = tmp_path_factory.mktemp("corpus")
    layout, rng = Layout(root), np.random.default_rng(0)
    keys, captions = [make_key(0, i) for i in range(48)], [CORPUS[i % 6] for i in range(48)]
    colours = np.random.default_rng(1).integers(0, 216, (6, 3))
    images = np.stack([colours[i % 6] + rng.integers(0, 40, (32, 32, 3)) for i in range(48)]).astype(np.uint8)
    samples = [Sample(k, encode(Image.fromarray(i)), c) for k, i, c in zip(keys, images, captions, strict=True)]
    rows = pd.DataFrame({"key": keys, "caption": captions, "status": "success"})
    for folder, num in ((layout.raw, 48), (layout.curated, 12)):
        folder.mkdir(parents=True)
        write_shard(folder, 0, samples[:num], rows[:num])
    write_manifest(layout.curated, rows[["key", "caption"]][:12].assign(shard="00000"))
    write_parquet(layout.filtered / "ledger" / "00000.parquet", rows.assign(first_failed_gate=""))
    job = JudgeJob(
        **places("faithfulness_judge", (layout.raw, layout.raw), root),
        root=root,
        held_share=0.3,
        loop=replace(LOOP, num_steps=40, learning_rate=4e-3, ema_decay=0.0),
        training=JudgeConfig(width=8, embed_dim=32, text_width=32, batch_size=24, seed=1),
    )

    def read(some: list[str], size: int) -> np.ndarray:
        return images[[keys.index(key) for key in some]].repeat(size // 32, 1).repeat(size // 32, 2)

    folder, _ = make_judge(job, read, captions, keys)
    shutil.copytree(folder / "result", layout.model("faithfulness_judge"))
    make_checkpoint("sd1", layout.model("quality_tuned"))
    return root


def ask(corpus: Path, project: Path, lines: list[str], **changes: Any) -> tuple[Layout, Params, dict[str, float]]:
    """Make both contestants' pictures of a file's prompts in a copy of the corpus: one set drawn, one provided by
    name."""
    shutil.copytree(corpus / "data", project / "data", dirs_exist_ok=True)
    (project / "mine.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    params = yaml.safe_load(text_of("smoke"))
    params["evaluation_images"] |= {
        "contestants": {"tuned": "data/models/quality_tuned", "rival": "rival"},
        "fixed_prompts": [],
        "prompts_file": "mine.txt",
        "num_prompts": None,
        "num_inference_steps": 1,
        **changes,
    }
    params["quality_tuned"]["resolution"] = 32
    params["comparison"] = ["tuned", "rival"]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    layout, read = Layout(project), read_params(project / "params.yaml")
    (project / "rival").mkdir()
    for number, prompt in enumerate(choose_prompts(layout, read)[0]["prompt"]):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(project / "rival" / f"{name_of_picture(prompt)}.png")
    made_by = {"tuned": "quality_tuned", "rival": "rival"}
    metrics, *_ = draw_contestants(layout, read, Drawn({"quality_tuned": "a" * 32}, made_by), {})
    return layout, read, metrics


def report(
    layout: Layout, params: Params, judged: dict[str, str]
) -> tuple[dict[str, float], dict[str, float], str, str]:
    """Return the metrics of both reports that need a judge, and the text of their pages."""
    with recorded_round(
        layout, "faithfulness", faithfulness_ballots(layout, params.faithfulness_votes, params.comparison)
    ):
        pass
    automatic, _ = report_automatically(layout, params, judged)
    faithful, *_ = report_preference(layout, params, "faithfulness", judged)
    page, other = ((layout.report(f"{n}_report") / "index.html").read_text() for n in ("automatic", "faithfulness"))
    return automatic, faithful, " ".join(page.split()), " ".join(other.split())


JUDGED: dict[str, str] = {"quality_tuned": "a" * 32}


def test_for_prompts_that_the_corpus_lacks_the_reports_say_what_they_cannot_say(corpus, project):
    layout, params, drawn = ask(corpus, project, [line for line in LINES if line != "red"])
    assert pd.read_parquet(layout.evaluation / "prompts.parquet")["prompt"].tolist() == [p.strip() for p in SUITE[:-1]]
    assert (drawn["num_prompts"], drawn["num_captions"]) == (5, 0)
    assert (drawn["num_blank_lines"], drawn["num_repeated_lines"], drawn["num_prompts_left_out"]) == (2, 1, 0)
    assert drawn["num_prompts_cut_tuned"] >= 1  # the long one

    automatic, faithful, page, other = report(layout, params, JUDGED)
    assert "This is unknown: none of the 5 prompts is a caption of the corpus" in page
    assert automatic["num_prompts_named"] == 0 and not [name for name in automatic if name.startswith("named_top")]
    assert automatic["near_copy_share_tuned"] >= 0 and automatic["frechet_to_curated_tuned"] > 0
    assert "This is unknown: nobody voted, and none of the 5 prompts" in other
    assert (faithful["num_prompts_asked"], faithful["num_prompts"], faithful["num_votes"]) == (5, 0, 0)
    verdict = judge_reports(layout, params.registered_model, JUDGED.get)["faithfulness_report"]
    assert not verdict.passed and verdict.reason.startswith("faithfulness: no prompt was judged, so nothing is shown")

    # a person can vote on what the judge cannot
    ballots = faithfulness_ballots(layout, params.faithfulness_votes, params.comparison)
    assert len(ballots.items) == 5 and not ballots.panel
    people = [Vote("faithfulness", "anna", "person", k, "A", side_order="AB", seen=s) for k, s in ballots.items.items()]
    open_log(layout.votes("faithfulness")).append(people[:4])
    _, faithful, _, other = report(layout, params, JUDGED)
    assert (faithful["num_prompts"], faithful["win"], faithful["num_votes_of_people"]) == (4, 100.0, 4)
    assert "Only 4 of the 5 prompts were judged" in other


def test_of_prompts_that_the_corpus_has_in_part_that_part_is_judged(corpus, project):
    layout, params, drawn = ask(corpus, project, LINES, fixed_prompts=["blue"])
    assert (drawn["num_prompts"], drawn["num_captions"]) == (7, 2)
    automatic, faithful, page, other = report(layout, params, JUDGED)
    assert "Only 2 of the 7 prompts are captions of the corpus" in page and automatic["num_prompts_named"] == 2
    assert 0 <= automatic["named_top_5_tuned"] <= 100
    assert (faithful["num_prompts"], faithful["num_votes"]) == (2, 2 * params.faithfulness_votes.num_raters)
    assert "Only 2 of the 7 prompts were judged" in other


def test_a_provided_judge_judges_every_prompt(corpus, project):
    layout, params, _ = ask(corpus, project, LINES)
    folder = layout.model("faithfulness_judge")
    brought = shutil.copytree(folder, project / "weights")
    meta = json.loads((folder / "meta.json").read_text())
    meta |= {"weights": "weights", "weights_digest": digest_weights("weights", project)}
    (folder / "meta.json").write_text(json.dumps(meta))
    assert brought.is_dir()
    automatic, faithful, page, other = report(layout, params, JUDGED)
    assert automatic["num_prompts_named"] == faithful["num_prompts"] == 6
    assert "This is unknown" not in page + other and "Only" not in page + other


def test_a_sample_of_a_file_keeps_its_order_and_the_fixed_prompts_count(corpus, project):
    layout, params, drawn = ask(corpus, project, LINES, num_prompts=4, fixed_prompts=["blue", "red"])
    prompts = pd.read_parquet(layout.evaluation / "prompts.parquet")["prompt"].tolist()
    assert prompts[:2] == ["blue", "red"] and drawn["num_prompts_left_out"] == 3
    places = [SUITE.index(next(p for p in SUITE if p.strip() == prompt)) for prompt in prompts[2:]]
    assert places == sorted(places) and len(places) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fixed_prompts": "mine.txt"},
            r"fixed_prompts: must be a list of prompts; set prompts_file",
        ),
        ({"fixed_prompts": ["a", "a"]}, r"fixed_prompts: 'a' is listed twice; remove one, or put the prompts into"),
        ({"num_prompts": None}, r"num_prompts: must be a number, since null means all of prompts_file"),
    ],
)
def test_invalid_requests_are_refused(project, changes, message):
    params = yaml.safe_load(text_of("smoke"))
    params["evaluation_images"] |= changes
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=message):
        read_params(project / "params.yaml")
