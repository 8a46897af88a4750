"""The asset front_page: data/reports/index.html over all reports, and the report of the trainings.

Its numbers are read from the files that the assets wrote, so they are right wherever the assets ran.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from emu_steps.layout import Layout
from emu_steps.params import Params

TRAININGS = {
    "autoencoder": "Autoencoder",
    "pretrained_low": "Pretraining, low resolution",
    "pretrained_mid": "Pretraining, middle resolution",
    "pretrained_full": "Pretraining, full resolution",
    "quality_tuned": "Quality-tuning",
}
COMMANDS = [
    ("make up", "Dagster's, MLflow's and these pages, with the graph, the runs and the registry"),
    (".venv/bin/emu doctor", "what is installed, found and missing"),
]


def write_front_page(
    layout: Layout, params: Params, reports: Sequence[str], made_from: Mapping[str, str]
) -> dict[str, float]:
    """Write the training report, the index and its pictures; return the sizes of the funnel.

    reports: the assets whose cards the index shows. made_from: asset -> md5 of the inputs, listed on the pages.

    Raises ValueError if a report is of another profile, or a training is not finished.
    """
    from emu_reports.index import write_index
    from emu_reports.page import Run
    from emu_reports.training import read_finished_training, write_training_report

    training = layout.training_report
    trainings = [read_finished_training(layout.model(name), title) for name, title in TRAININGS.items()]
    run = Run(params.profile, params.toy, made_from)
    of_trainings = {name: md5 for name, md5 in made_from.items() if name in TRAININGS}
    write_training_report(training, trainings, Run(params.profile, params.toy, of_trainings))
    sizes, registered = read_sizes(layout), read_registered(layout)
    generate = (generate_command(registered), "pictures from the registered model")
    folders = [*(layout.report(name) for name in reports), training]
    write_index(layout.index, layout.report("front_page"), folders, run, sizes, registered, [*COMMANDS, generate])
    return {f"num_{name}": size for name, size in sizes.items()}


def read_report(layout: Layout, name: str) -> dict[str, Any]:
    """Read data/reports/NAME/report.json. Raises ValueError if it is missing."""
    path = layout.report(name) / "report.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; materialise {name}")
    return json.loads(path.read_text(encoding="utf-8"))


def read_registered(layout: Layout) -> dict[str, Any]:
    """Read data/registered_model.json: name, version, alias, verdicts by report, and tags of the last registered
    version.
    """
    return json.loads(layout.registered.read_text())


def read_sizes(layout: Layout) -> dict[str, int]:
    """Read the number of pictures at each step from the raw corpus to the curated set."""
    import pyarrow.parquet as pq

    from emu_data.shards import read_manifest

    funnel = read_report(layout, "filtered_corpus")
    return {
        "raw": funnel["num_raw"],
        "filtered": funnel["num_kept"],
        "generalists": pq.read_metadata(layout.generalist / "selection.parquet").num_rows,
        "curated": len(read_manifest(layout.curated)),
    }


def generate_command(registered: Mapping[str, Any]) -> str:
    """Return the command that draws pictures with the last registered version."""
    address = f"models:/{registered['name']}@{registered['alias']}"
    model = "" if address == "models:/emu@champion" else f" --model {address}"  # the command's default
    return f'.venv/bin/emu generate "a red apple" --num 4{model}'
