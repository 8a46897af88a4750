"""MLflow's model registry: what is registered, with which lineage, and who becomes champion.

A version points to the pipeline's folder as an artifact (safetensors in diffusers' layout) with a pyfunc "from code"
that serves it. Aliases, not stages: `champion` goes to a version that passed every report, `challenger` to one that
did not, with the reasons on the version's page.
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
from emu_steps.layout import Layout, project_root
from emu_steps.params import REGISTERED, REGISTERED_VERSION, RegisteredModel, tunes_ours
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
PRETRAINING = ("autoencoder", "pretrained_full")  # in the lineage where they are what was tuned
MD5_TAG = "md5.quality_tuned"  # by which a version is known


@dataclass(frozen=True)
class Version:
    number: int
    alias: str
    verdict: str  # Markdown


def judge_reports(
    layout: Layout, section: RegisteredModel, digest_of: Callable[[str], str | None]
) -> dict[str, Verdict]:
    """Report -> what it allows, for each of REPORTS; one that is missing, old or about another model allows nothing.

    digest_of: asset -> the md5 that DVC has recorded of it.
    """
    verdicts = {}
    for name, gate in REPORTS.items():
        try:
            verdicts[name] = gate(read_evidence(layout, name, digest_of), section)
        except NoEvidence as error:
            verdicts[name] = Verdict(False, f"{name.removesuffix('_report')}: nothing is known: {error}")
        except (KeyError, ValueError) as error:
            path = (layout.report(name) / METRICS_FILE).relative_to(layout.root)
            verdicts[name] = Verdict(
                False, f"{name.removesuffix('_report')}: {path} is no evidence, {error}; materialise {name} again"
            )
    return verdicts


def _judge_appeal(found: Mapping[str, Any], section: RegisteredModel) -> Verdict:
    won, lost, num = _counts(found, *PROMPTS)
    return appeal_verdict(won, lost, num, section.min_appeal_win)


def _judge_faithfulness(found: Mapping[str, Any], section: RegisteredModel) -> Verdict:
    num_votes, num_of_people = _counts(found, "num_votes", "num_votes_of_people")
    if num_votes and num_votes == num_of_people:
        judge = Verdict(True, "all votes are of people")
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
    """The counts of these names. KeyError or ValueError where one is missing or is none."""
    for name in names:
        value = found[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < 0 or value != int(value):
            raise ValueError(f"{name} is {value!r}, which is no count")
    return tuple(int(found[name]) for name in names)


PROMPTS = ("num_prompts_won", "num_prompts_lost", "num_prompts")
REPORTS = {
    "appeal_report": _judge_appeal,
    "faithfulness_report": _judge_faithfulness,
    "automatic_report": _judge_copies,
}


def describe_judges(layout: Layout) -> str:
    """Who voted on the models, by round; the reports know it."""
    pages = {axis: layout.report(f"{axis}_report") / "report.json" for axis in ("appeal", "faithfulness")}
    found = {axis: json.loads(page.read_text()) for axis, page in pages.items() if page.is_file()}
    return "; ".join(f"{axis}: {report.get('voters', 'not stated')}" for axis, report in found.items()) or "nobody"


def register(record: "Record") -> Version:
    """Registers data/models/quality_tuned under registered_model.name, sets alias, tags and description, and writes
    data/registered_model.json.

    The same bytes are one version, however often they are judged: a version with their md5 gets the new verdict. A
    version appears with its tags at once, so that one whose registration was interrupted is found and completed.
    Raises ValueError where the name has versions of another profile: an alias must not change hands unseen.
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
            f"models:/{section.name} has versions of the profile {', '.join(others)}, and this one is of {profile}: "
            "give registered_model.name in params.yaml a name of its own"
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
    for other in {"champion", "challenger"} - {alias}:  # what it was called after an earlier judgement
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
    """Logs the pipeline as a model and makes it a version, tags and all, in one step."""
    import mlflow

    with warnings.catch_warnings(record=True) as warned:  # MLflow overrules filters
        model = mlflow.pyfunc.log_model(name="model", **served_model(record.layout.model("quality_tuned")))
    for one in warned:
        if "Any type hint" not in str(one.message):  # served_model.py checks its input itself
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return int(mlflow.register_model(model.model_uri, name, tags=dict(tags)).version)


def served_model(pipeline: Path) -> dict[str, Any]:
    """What MLflow stores of a pipeline's folder so that it can serve it (arguments of mlflow.pyfunc.log_model)."""
    top = Path(__file__).parent.parent
    return {
        "python_model": str(Path(__file__).with_name("served_model.py")),
        "artifacts": {"pipeline": str(pipeline)},
        "code_paths": [str(top / "emu_models"), str(top / "emu_data")],
        "pip_requirements": served_requirements(),
    }


def served_requirements() -> list[str]:
    """Exact versions of what serving needs, as installed here."""
    from importlib.metadata import version

    names = ("diffusers", "mlflow", "pillow", "pydantic", "safetensors", "torch", "transformers")
    return [f"{name}=={version(name)}" for name in names]


def find_model(address: str) -> Path:
    """The pipeline's folder of `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a folder on disk.

    ValueError says what there is where the address leads nowhere.
    """
    if not address.startswith(REGISTERED):
        path = Path(address)
        return path if path.is_absolute() else (project_root() / path if not path.exists() else path)
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
    """What decides the pictures of `models:/NAME@ALIAS` or `models:/NAME/VERSION`: the md5 of our models, else which
    version it is. "" where there is none, or nobody answers: find_model says why when it is needed."""
    import mlflow

    match = REGISTERED_VERSION.fullmatch(address)
    assert match, "params.yaml takes no other"
    name, alias, version = match.groups()
    try:
        MlflowTracking().connect()
        client = mlflow.MlflowClient()
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
    except (TrackerAway, mlflow.MlflowException):
        return ""
    return found.tags.get(MD5_TAG) or f"{name}/{found.version}"


def list_versions() -> list[str]:
    """The address of every registered version, with its aliases behind it."""
    import mlflow

    client = mlflow.MlflowClient()
    names: dict[tuple[str, str], str] = {}  # a search for versions leaves their aliases out
    for model in client.search_registered_models():
        for alias, number in model.aliases.items():
            names[model.name, str(number)] = names.get((model.name, str(number)), "") + f" (@{alias})"
    versions = client.search_model_versions()
    return [f"models:/{v.name}/{v.version}{names.get((v.name, str(v.version)), '')}" for v in versions]
