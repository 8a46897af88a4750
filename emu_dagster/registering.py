"""MLflow's model registry: what is registered, with which lineage, and which version becomes champion.

A version points to the pipeline's folder as an artifact (safetensors in diffusers' layout) with a pyfunc "from code"
that serves it. MLflow's aliases are used, not its stages: `champion` goes to a version that passed every report,
`challenger` to one that did not, with the reasons on the version's page.
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_dagster.resources.mlflow import MlflowTracking
from emu_dagster.resources.mlflow_store import TrackerAway
from emu_data.files import write_json
from emu_steps.evidence import METRICS_FILE, NUM_NEAR, NUM_PICTURES, NoEvidence, read_evidence
from emu_steps.generating import folder_on_disk
from emu_steps.layout import Layout
from emu_steps.params import REGISTERED_VERSION, RegisteredModel, tunes_ours
from emu_steps.verdicts import (
    Verdict,
    appeal_verdict,
    copy_verdict,
    faithfulness_verdict,
    judge_verdict,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from emu_dagster.resources.recorder import Record

LINEAGE = ("raw_corpus", "filtered_corpus", "curated_set", "quality_tuned")
PRETRAINING = ("autoencoder", "pretrained_full")  # added to the lineage if our own pretrained model was tuned
MD5_TAG = "md5.quality_tuned"  # identifies a version


@dataclass(frozen=True)
class Version:
    """A registered version, its alias (champion or challenger), and the verdict that its page shows."""

    number: int
    alias: str
    verdict: str  # Markdown


def judge_reports(
    layout: Layout, section: RegisteredModel, digest_of: Callable[[str], str | None]
) -> dict[str, Verdict]:
    """Return report -> verdict, for each of REPORTS. A report that is missing, outdated or about another model does not
    pass.

    digest_of: returns the md5 that DVC has recorded for an asset, None if it has none.
    """
    verdicts = {}
    for name, gate in REPORTS.items():
        try:
            verdicts[name] = gate(read_evidence(layout, name, digest_of), section)
        except NoEvidence as error:
            verdicts[name] = Verdict(False, f"{name.removesuffix('_report')}: no evidence: {error}")
        except (KeyError, ValueError) as error:
            path = (layout.report(name) / METRICS_FILE).relative_to(layout.root)
            verdicts[name] = Verdict(
                False, f"{name.removesuffix('_report')}: {path} cannot be used ({error}); materialise {name} again"
            )
    return verdicts


def _judge_appeal(found: Mapping[str, Any], section: RegisteredModel) -> Verdict:
    won, lost, num = _counts(found, *PROMPTS)
    return appeal_verdict(won, lost, num, section.min_appeal_win)


def _judge_faithfulness(found: Mapping[str, Any], section: RegisteredModel) -> Verdict:
    num_votes, num_of_people = _counts(found, "num_votes", "num_votes_of_people")
    if num_votes and num_votes == num_of_people:
        judge = Verdict(True, "all votes are by people")
    else:
        wrong, pairs = _counts(found, "num_known_wrong", "num_known_pairs")
        judge = judge_verdict(wrong, pairs, section.max_judge_error)
    won, lost, num = _counts(found, *PROMPTS)
    return faithfulness_verdict(won, lost, num, section.faithfulness_margin, judge)


def _judge_copies(found: Mapping[str, Any], section: RegisteredModel) -> Verdict:
    candidate = found["candidate"]
    names = [name.removeprefix(NUM_PICTURES) for name in found if name.startswith(NUM_PICTURES)]
    near, num = _counts(found, NUM_NEAR + candidate, NUM_PICTURES + candidate)
    others: dict[str, Any] = {
        who: _counts(found, NUM_NEAR + who, NUM_PICTURES + who) for who in names if who != candidate
    }
    return copy_verdict(near, num, section.max_near_copies, others)


def _counts(found: Mapping[str, Any], *names: str) -> tuple[int, ...]:
    """Read these counts. Raises KeyError if one is missing, ValueError if one is not a count."""
    for name in names:
        value = found[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < 0 or value != int(value):
            raise ValueError(f"{name} is {value!r}, which is not a count")
    return tuple(int(found[name]) for name in names)


PROMPTS = ("num_prompts_won", "num_prompts_lost", "num_prompts")
REPORTS = {
    "appeal_report": _judge_appeal,
    "faithfulness_report": _judge_faithfulness,
    "automatic_report": _judge_copies,
}


def describe_judges(layout: Layout) -> str:
    """Return who voted on the models, per round, in the words of the reports."""
    pages = {axis: layout.report(f"{axis}_report") / "report.json" for axis in ("appeal", "faithfulness")}
    found = {axis: json.loads(page.read_text()) for axis, page in pages.items() if page.is_file()}
    return "; ".join(f"{axis}: {report.get('voters', 'not stated')}" for axis, report in found.items()) or "nobody"


def register(record: "Record") -> Version:
    """Register data/models/quality_tuned under registered_model.name, set alias, tags and description, and write
    data/registered_model.json.

    The same bytes stay one version, however often they are judged: an existing version with their md5 gets the new
    verdict. A version is created together with its tags, so that an interrupted registration is found and completed.

    Raises ValueError if the name has versions of another profile: an alias must not move silently between profiles.
    """
    import mlflow

    section = record.params.registered_model
    verdicts = judge_reports(record.layout, section, record.dvc.digest_of)
    passed = all(verdict.passed for verdict in verdicts.values())
    reasons = [f"{'passed' if v.passed else 'FAILED'}: {v.reason}" for v in verdicts.values()]

    client = mlflow.MlflowClient()
    profile, md5 = record.params.profile, record.dvc.digest_of("quality_tuned") or ""
    versions = _versions_of(client, section.name)
    if others := sorted({v.tags["profile"] for v in versions if "profile" in v.tags} - {profile}):
        raise ValueError(
            f"models:/{section.name} has versions of profile {', '.join(others)}, but this model is of {profile}: "
            "give this profile another registered_model.name in params.yaml"
        )
    start_from = record.params.quality_tuned.start_from
    lineage = (*LINEAGE, *PRETRAINING) if tunes_ours(start_from) else LINEAGE
    tags = {f"md5.{name}": record.dvc.digest_of(name) or "" for name in lineage}
    tags |= {"start_from": start_from}
    tags |= {"md5.start_from": record.dvc.deps_of("quality_tuned").get(start_from, "")}
    voters = describe_judges(record.layout)
    tags |= {"profile": profile, "toy_scale": str(record.params.toy).lower(), "judged_by": voters}

    alias = "champion" if passed else "challenger"
    same = [int(v.version) for v in versions if md5 and v.tags.get(MD5_TAG) == md5]
    number = str(min(same) if same else _create_version(record, section.name, tags))
    for name, value in tags.items():
        client.set_model_version_tag(section.name, number, name, value)
    description = "\n\n".join([f"**{alias}**, judged by {voters}.", *reasons])
    judged = f"Judged {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    client.update_model_version(section.name, number, f"{description}\n\n{judged}")
    holders = client.get_registered_model(section.name).aliases
    for other in {"champion", "challenger"} - {alias}:  # an earlier verdict may have given it the other alias
        if str(holders.get(other)) == number:
            client.delete_registered_model_alias(section.name, other)
    client.set_registered_model_alias(section.name, alias, number)
    write_json(
        record.layout.registered,
        {
            "name": section.name,
            "version": int(number),
            "alias": alias,
            "verdicts": {report: asdict(verdict) for report, verdict in verdicts.items()},
            "tags": tags,
        },
    )
    return Version(int(number), alias, description)


def _versions_of(client: "MlflowClient", name: str) -> list["ModelVersion"]:
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _create_version(record: "Record", name: str, tags: Mapping[str, str]) -> int:
    """Log the pipeline as a model, and create a version of it with its tags in one step; return the version's
    number."""
    import mlflow

    with warnings.catch_warnings(record=True) as warned:  # MLflow overrides warning filters
        model = mlflow.pyfunc.log_model(name="model", **served_model(record.layout.model("quality_tuned")))
    for one in warned:
        if "Any type hint" not in str(one.message):  # served_model.py checks its input itself
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return int(mlflow.register_model(model.model_uri, name, tags=dict(tags)).version)


def served_model(pipeline: Path) -> dict[str, Any]:
    """Return the arguments of mlflow.pyfunc.log_model with which MLflow can serve a pipeline's folder."""
    top = Path(__file__).parent.parent
    return {
        "python_model": str(Path(__file__).with_name("served_model.py")),
        "artifacts": {"pipeline": str(pipeline)},
        "code_paths": [str(top / "emu_models"), str(top / "emu_data")],
        "pip_requirements": served_requirements(),
    }


def served_requirements() -> list[str]:
    """Return the packages that serving needs, with the exact versions installed here."""
    from importlib.metadata import version

    names = ("diffusers", "mlflow", "pillow", "pydantic", "safetensors", "torch", "transformers")
    return [f"{name}=={version(name)}" for name in names]


def find_model(address: str) -> Path:
    """Return the pipeline's folder for `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a folder on disk.

    Raises ValueError, which lists the registered versions, if the address does not exist.
    """
    if folder := folder_on_disk(address):
        return folder
    import mlflow

    MlflowTracking().connect()
    try:
        artifacts = mlflow.models.get_model_info(address).flavors["python_function"]["artifacts"]
        folder = mlflow.artifacts.download_artifacts(artifact_uri=f"{address}/{artifacts['pipeline']['path']}")
    except mlflow.MlflowException as error:
        known = ", ".join(list_versions()) or "none; run `make demo` first"
        raise ValueError(f"{address}: {error.message.splitlines()[0].rstrip('.')}. Registered: {known}") from None
    return Path(folder)


def digest_of_version(address: str) -> str:
    """Return what identifies the pictures of `models:/NAME@ALIAS` or `models:/NAME/VERSION`: the md5 of our own models,
    otherwise the version. "" if it does not exist or the server does not answer; find_model says why when the model is
    needed.
    """
    import mlflow

    match = REGISTERED_VERSION.fullmatch(address)
    assert match, "params.yaml accepts no other form"
    name, alias, version = match.groups()
    try:
        MlflowTracking().connect()
        client = mlflow.MlflowClient()
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
    except (TrackerAway, mlflow.MlflowException):
        return ""
    return found.tags.get(MD5_TAG) or f"{name}/{found.version}"


def list_versions() -> list[str]:
    """Return the address of every registered version, followed by its aliases."""
    import mlflow

    client = mlflow.MlflowClient()
    names: dict[tuple[str, str], str] = {}  # a search for versions does not return aliases
    for model in client.search_registered_models():
        for alias, number in model.aliases.items():
            names[model.name, str(number)] = names.get((model.name, str(number)), "") + f" (@{alias})"
    versions = client.search_model_versions()
    return [f"models:/{v.name}/{v.version}{names.get((v.name, str(v.version)), '')}" for v in versions]
