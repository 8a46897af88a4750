"""The registry goes by bytes and profiles: the same bytes are one version, and no profile takes another's alias."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emu_dagster import registering
from emu_dagster.registering import MD5_TAG, Verdict, digest_of_version, register
from emu_dagster.resources.mlflow import MlflowTracking
from emu_steps.layout import Layout
from tests.profiles import NAMES, params_of

TOP = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a model to register; one MLflow database for the module, because making it takes seconds."""
    root = tmp_path_factory.mktemp("root")
    MlflowTracking(root=str(root)).connect()
    folder = Layout(root).model("quality_tuned")
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return root


@pytest.fixture
def judge(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """judge(name, md5, passed, profile) registers a model with these bytes and this verdict."""
    MlflowTracking(root=str(root)).connect()
    params = params_of("smoke")
    monkeypatch.setattr(registering, "served_requirements", list)

    def run(name: str, md5: str, passed: bool, profile: str = "smoke") -> Any:
        def judge_reports(*_: Any) -> dict[str, Verdict]:
            return {report: Verdict(passed, f"{report} says so") for report in registering.REPORTS}

        monkeypatch.setattr(registering, "judge_reports", judge_reports)
        section = params.registered_model.model_copy(update={"name": name})
        given = params.model_copy(update={"registered_model": section, "profile": profile})
        dvc = SimpleNamespace(digest_of=lambda asset: md5, deps_of=lambda asset: {})
        return register(SimpleNamespace(params=given, layout=Layout(root), dvc=dvc))  # type: ignore[arg-type]

    return run


def registered(name: str) -> tuple[dict[str, str], list[Any]]:
    """Return aliases, and the versions with the lowest number first."""
    import mlflow

    client = mlflow.MlflowClient()
    aliases = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
    return aliases, sorted(client.search_model_versions(f"name = '{name}'"), key=lambda v: int(v.version))


def test_the_same_bytes_judged_again_are_the_same_version(root: Path, judge: Callable[..., Any]):
    assert judge("again", "a" * 32, passed=False).number == 1
    assert judge("again", "a" * 32, passed=True).number == 1
    aliases, (version,) = registered("again")
    assert aliases == {"champion": "1"}  # no longer a challenger
    assert "**champion**" in version.description and "Judged" in version.description
    assert judge("again", "b" * 32, passed=False).number == 2
    assert registered("again")[0] == {"champion": "1", "challenger": "2"}
    judge("again", "a" * 32, passed=False)  # a model that the reports no longer accept is no champion
    assert registered("again")[0] == {"challenger": "1"}
    assert json.loads(Layout(root).registered.read_text())["version"] == 1


def test_a_version_is_identified_by_its_bytes_when_models_are_compared(
    root: Path, judge: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """A version that does not exist decides nothing yet: drawing says what is missing."""
    monkeypatch.setenv("EMU_ROOT", str(root))
    judge("rival", "a" * 32, passed=True)
    judge("rival", "b" * 32, passed=False)
    known = {address: digest_of_version(f"models:/rival{address}") for address in ("@champion", "@challenger", "/2")}
    assert known == {"@champion": "a" * 32, "@challenger": "b" * 32, "/2": "b" * 32}
    judge("rival", "b" * 32, passed=True)
    assert digest_of_version("models:/rival@champion") == "b" * 32
    assert digest_of_version("models:/rival@nobody") == digest_of_version("models:/nobody/1") == ""


def test_another_profile_does_not_take_an_alias(judge: Callable[..., Any]):
    judge("mine", "a" * 32, passed=True, profile="emoji")
    before = registered("mine")[0]
    with pytest.raises(ValueError, match=r"models:/mine has versions of profile emoji.*registered_model\.name"):
        judge("mine", "b" * 32, passed=True, profile="smoke")
    aliases, versions = registered("mine")
    assert aliases == before and len(versions) == 1


def test_each_profile_has_its_own_name():
    names = [params_of(name).registered_model.name for name in NAMES]
    assert len(names) == len(set(names)) > 3
    assert params_of("emoji").registered_model.name == "emu"  # README: models:/emu@champion


@pytest.mark.parametrize("moment", ["log_model", "register_model", "tag", "describe", "alias", "write"])
def test_an_interrupted_registration_is_completed(
    judge: Callable[..., Any], moment: str, monkeypatch: pytest.MonkeyPatch
):
    """The registration ends after `moment`; whatever version exists then has its tags, and the next run does the
    rest."""
    import mlflow

    owner, method = {
        "log_model": (mlflow.pyfunc, "log_model"),
        "register_model": (mlflow, "register_model"),
        "tag": (mlflow.MlflowClient, "set_model_version_tag"),
        "describe": (mlflow.MlflowClient, "update_model_version"),
        "alias": (mlflow.MlflowClient, "set_registered_model_alias"),
        "write": (registering, "write_json"),
    }[moment]
    real = getattr(owner, method)

    def killed(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise KeyboardInterrupt

    name = f"cut-{moment}"
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, killed)
        with pytest.raises(KeyboardInterrupt):
            judge(name, "c" * 32, passed=True)
    if moment != "log_model":
        (version,) = registered(name)[1]
        assert version.tags[MD5_TAG] == "c" * 32 and version.tags["profile"] == "smoke"
    judge(name, "c" * 32, passed=True)
    aliases, (version,) = registered(name)
    assert aliases == {"champion": "1"} and "**champion**" in version.description
