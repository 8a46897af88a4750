"""Commands about the project: its params, its corpus, its votes, its records, its pages."""

import os
import sys
from typing import Annotated

import typer

from emu_dagster.cli.app import Profile, app, not_blank, votes_app
from emu_steps.layout import project_root


@app.command()
def profile(name: Annotated[str, typer.Argument(help="a file of profiles/, without .yaml")]) -> None:
    """Make a profile the project's params.yaml."""
    use_profile(name)


@app.command()
def ingest(
    address: Annotated[
        str, typer.Argument(help="a folder, a table's file, or any fsspec address of one", callback=not_blank)
    ],
    kind: Annotated[str | None, typer.Option(help="img2dataset, folder or table; found out if not given")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="bring the pictures into data/raw")] = False,
    image_column: Annotated[
        str | None, typer.Option(help="a table's column of paths or URLs", callback=not_blank)
    ] = None,
    caption_column: Annotated[str | None, typer.Option(help="a table's column of captions", callback=not_blank)] = None,
    base: Annotated[
        str | None, typer.Option(help="what a table's paths are below; else its own folder", callback=not_blank)
    ] = None,
) -> None:
    """Register a corpus: find out what it is, and write it into params.yaml as raw_corpus. Nothing is copied yet."""
    from emu_data.sources.detect import find_corpus
    from emu_steps.corpora import ingest as write_params
    from emu_steps.params import read_params

    root = project_root()
    options = read_params(root / "params.yaml").raw_corpus.storage_options
    corpus = find_corpus(address, kind, options, image_column, caption_column, base)
    write_params(root, corpus, copy, options)
    print(f"{corpus.source} at {corpus.path}", *corpus.told, sep="\n  ")
    print("params.yaml: raw_corpus reads it now; next: emu materialize raw_corpus")


@app.command()
def plan(
    profile: Profile = "paper",
    gpu: Annotated[str, typer.Option(help="A100, H100 or H200")] = "H100",
    num_gpus: Annotated[int, typer.Option(min=1, max=1_000_000)] = 256,
    mfu: Annotated[
        float,
        typer.Option(min=0.001, max=1, help="share of the peak that training reaches; assumed"),
    ] = 0.4,
    price: Annotated[float, typer.Option(min=0, max=10_000, help="dollars per hour of one GPU; assumed")] = 2.5,
    strategy: Annotated[str, typer.Option(help="how states are held: ddp, fsdp or hsdp")] = "hsdp",
    pairs: Annotated[
        int, typer.Option(min=1, max=10**12, help="pictures to pretrain on; the paper's number")
    ] = 1_100_000_000,
) -> None:
    """Say what the trainings of a profile take: parameters, FLOPs, memory, shards, days and dollars. Runs nothing."""
    from emu_dagster.commands.plan import print_plan
    from emu_models.cost.planning import Cluster, find_gpu
    from emu_steps.profiles import read_profile

    params = read_profile(project_root() / "profiles", profile)
    print_plan(params, Cluster(find_gpu(gpu), num_gpus, mfu, price, strategy), pairs)


@votes_app.command()
def verify(
    round: Annotated[
        str | None, typer.Argument(help="generalist, specialist, appeal or faithfulness; none: all")
    ] = None,
) -> None:
    """Check the hash chain of each round's log, and that it holds what was recorded; exit code 1 for any edit."""
    from emu_steps.layout import Layout
    from emu_steps.voting import verify_rounds

    found = verify_rounds(Layout(project_root()), round)
    for checked in found:
        print(f"{checked.round}: {checked.told}")
    raise typer.Exit(int(not all(checked.is_sound for checked in found)))


@app.command()
def doctor() -> None:
    """Say what is installed, found and missing, and how to mend it."""
    from emu_dagster.commands.doctor import examine, print_findings

    raise typer.Exit(print_findings(examine()))


@app.command()
def up(
    dagster_port: Annotated[int, typer.Option(min=1, max=65535)] = 3000,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    reports_port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Start Dagster's, MLflow's and the reports' pages on 127.0.0.1; Ctrl-C stops all three."""
    from emu_dagster.commands.pages import serve
    from emu_dagster.resources.addresses import Ports

    code = serve(Ports(dagster_port, mlflow_port, reports_port))
    sys.stdout.flush()
    os._exit(code)  # all is stopped; to free what Dagster imported would take another second or two


@app.command()
def push(
    remote: Annotated[
        str | None, typer.Option(help="name of a DVC remote; without it the default one", callback=not_blank)
    ] = None,
) -> None:
    """Upload what is recorded to a DVC remote."""
    from emu_dagster.resources.dvc import DvcRecord

    print(DvcRecord().push(remote or ""))


def use_profile(name: str) -> None:
    """Writes a profile of profiles/, whole, to params.yaml."""
    from emu_data.files import atomic_file
    from emu_steps.profiles import profile_text

    text, target = profile_text(project_root() / "profiles", name), project_root() / "params.yaml"
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        with atomic_file(target) as partial:
            partial.write_text(text, encoding="utf-8")
