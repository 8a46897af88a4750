"""The graph as a whole: what must be there, its agreement with dvc.yaml, and that it does not change unnoticed."""

import json
from pathlib import Path

import dagster as dg
import pytest
import yaml

from emu_dagster.declarations.declared import DECLARATIONS
from emu_dagster.declarations.dvc_yaml import render_stages
from emu_steps.layout import Layout
from emu_steps.params import Params, read_params
from emu_steps.profiles import profile_text
from tests.profiles import NAMES, PROFILES, params_of, text_of

TOP = Path(__file__).parent.parent
SNAPSHOT = Path(__file__).parent / "graph.json"


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    """The definitions, loaded with the repository as the project."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMU_ROOT", str(TOP))
        from emu_dagster.definitions import defs

    return defs


@pytest.fixture(scope="module")
def stages() -> dict[str, dict]:
    return yaml.safe_load((TOP / "dvc.yaml").read_text())["stages"]


def describe(defs: dg.Definitions) -> dict[str, dict]:
    """Return what a reviewer should see if it changes: every asset's deps, group, kinds, pool and checks."""
    graph = defs.resolve_asset_graph()
    described = {}
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        described[key.to_user_string()] = {
            "deps": sorted(parent.to_user_string() for parent in node.parent_keys),
            "group": node.group_name,
            "kinds": sorted(node.kinds),
            "owners": sorted(node.owners),
            "pools": sorted(node.pools or []),
            "checks": sorted(check.name for check in node.check_keys),
        }
    return described


def test_the_graph_is_the_agreed_one(defs):
    """A changed graph shows as a diff of graph.json, which `python -m tests.test_graph` writes again."""
    assert describe(defs) == json.loads(SNAPSHOT.read_text())


def test_every_asset_says_what_it_is(defs):
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and len(node.description) > 20, key
        assert node.owners and node.group_name != "default" and node.kinds, key
        assert node.code_version, key


def test_each_asset_is_a_stage_and_a_section(defs, stages):
    keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    sections = set(Params.model_fields) - {"profile", "toy", "engine", "launch", "comparison"}
    assert keys == set(stages) and sections == keys - {
        "front_page",
        "written_captions",
    }  # which have no params of their own


def test_dvc_yaml_agrees_with_the_declarations(defs):
    text = render_stages(DECLARATIONS, read_params(TOP / "params.yaml"), Layout(TOP))
    assert (TOP / "dvc.yaml").read_text() == text, "python -m emu_dagster.declarations.dvc_yaml writes it"


def test_stages_depend_on_what_the_assets_depend_on(defs, stages):
    """Each dep of a stage is an out of a direct parent, and all outs of each parent are deps, but for logs of votes,
    which grow at any time: of a round the export alone is read."""
    graph = defs.resolve_asset_graph()
    for name, stage in stages.items():
        parents = {parent.to_user_string() for parent in graph.get(dg.AssetKey(name)).parent_keys}
        read = {out for parent in parents for out in DECLARATIONS[parent].read_outs}
        assert set(stage.get("deps", [])) == read, name
        assert not any(dep.endswith("votes.jsonl") for dep in read), name
        assert [next(iter(out)) for out in stage["outs"]] == list(DECLARATIONS[name].outs)
        assert all(options == {"persist": True} for out in stage["outs"] for options in out.values()), name


def test_trainings_share_the_gpu_pool(defs):
    pools = {name for name, node in describe(defs).items() if node["pools"] == ["gpu"]}
    assert pools >= {"alignment_model", "autoencoder", "pretrained_low", "pretrained_full", "quality_tuned"}


def test_jobs_schedule_and_sensors_are_there_and_off(defs):
    repository = defs.get_repository_def()
    assert {"whole_graph", "data_half", "model_half"} <= set(repository.job_names)
    (schedule,) = repository.schedule_defs
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert schedule.cron_schedule == "0 6 * * 1"
    assert {sensor.name for sensor in repository.sensor_defs} == {"new_raw_shards", "new_votes"}
    assert {sensor.default_status for sensor in repository.sensor_defs} == {dg.DefaultSensorStatus.STOPPED}


@pytest.mark.parametrize("name", NAMES)
def test_profiles_are_complete(name):
    assert params_of(name).profile == name


def test_a_profile_overrides_another_and_keeps_its_comments(tmp_path):
    (tmp_path / "base.yaml").write_text("# all\na:\n  x: 1   # px\n  y: [1, 2]\n\nb: {z: null}\n")
    (tmp_path / "small.yaml").write_text("# small\nbase: base\na:\n  y: [3]\n  w: 5\nb: {z: 0, v: 1}\n")
    (tmp_path / "smaller.yaml").write_text("base: small\na: {x: 0}   # less\n")
    text = profile_text(tmp_path, "smaller")
    assert yaml.safe_load(text) == {"a": {"x": 0, "y": [3], "w": 5}, "b": {"z": 0, "v": 1}}
    assert "# px" in text and "# less" in text and "base:" not in text
    assert "z: null" in profile_text(tmp_path, "small").replace("z: 0", "z: null")
    with pytest.raises(ValueError, match="no profile 'base'; there are: small, smaller"):
        profile_text(tmp_path, "base")


def test_a_profile_repeats_nothing_of_its_base():
    """Each leaf of a profile differs from its base: equal values are written once."""
    for name in NAMES:
        own = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())
        below = own.pop("base")
        assert (
            repeated(own, yaml.safe_load(text_of(below) if below != "base" else (PROFILES / "base.yaml").read_text()))
            == []
        ), name


def repeated(own: dict, below: dict, path: str = "") -> list[str]:
    found = []
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            found += repeated(value, below[key], f"{path}{key}.")
        elif key in below and below[key] == value:
            found.append(f"{path}{key}")
    return found


def test_the_default_params_are_the_demo():
    assert (TOP / "params.yaml").read_text() == text_of("emoji")


def test_what_the_paper_fixes_is_in_every_profile():
    for path in NAMES:
        params = params_of(path)
        assert (params.pretrained_low.noise_offset, params.pretrained_mid.noise_offset) == (0, 0), path
        assert params.pretrained_full.noise_offset == 0.02, path
        assert params.quality_tuned.noise_offset == 0.1, path
        assert (params.appeal_votes.num_raters, params.faithfulness_votes.num_raters) == (5, 3), path
        resolutions = [getattr(params, f"pretrained_{stage}").resolution for stage in ("low", "mid", "full")]
        assert resolutions == sorted(set(resolutions)), path


def test_wrong_params_are_named(tmp_path):
    text = text_of("smoke").replace("noise_offset: 0.1", "noise_ofset: 0.1")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"quality_tuned\.noise_ofset"):
        read_params(tmp_path / "params.yaml")
    text = text_of("smoke").replace("  num_folds:", "  judge_seed: 1\n  num_folds:")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"judge_seed: .* \(is now faithfulness_judge.seed\)\n.*older version"):
        read_params(tmp_path / "params.yaml")
    with pytest.raises(ValueError, match="emu profile"):
        read_params(tmp_path / "nothing.yaml")


if __name__ == "__main__":
    from emu_dagster.definitions import defs as loaded

    SNAPSHOT.write_text(json.dumps(describe(loaded), indent=2) + "\n")
