"""Commands about the project: its params, its corpus, its votes, its records, its pages."""

import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from emu_dagster.cli.app import Overwrite, Profile, app, not_blank, plan_app, votes_app
from emu_steps.layout import project_root


@app.command()
def profile(
    name: Annotated[str, typer.Argument(help="name of a file in profiles/, without .yaml")],
    overwrite: Overwrite = False,
) -> None:
    """Write a profile to the project's params.yaml."""
    use_profile(name, overwrite)


@app.command()
def ingest(
    address: Annotated[
        str, typer.Argument(help="a folder or the file of a table, as a path or fsspec address", callback=not_blank)
    ],
    kind: Annotated[str | None, typer.Option(help="img2dataset, folder or table; default: detected")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="copy the pictures into data/raw")] = False,
    image_column: Annotated[
        str | None, typer.Option(help="a table's column of paths or URLs", callback=not_blank)
    ] = None,
    caption_column: Annotated[str | None, typer.Option(help="a table's column of captions", callback=not_blank)] = None,
    base: Annotated[
        str | None, typer.Option(help="folder of a table's paths; default: the table's folder", callback=not_blank)
    ] = None,
) -> None:
    """Register a corpus: detect its kind, and write it to params.yaml as raw_corpus. Nothing is copied yet."""
    from emu_data.addresses import Store
    from emu_data.sources.detect import find_corpus
    from emu_steps.corpora import ingest as write_params
    from emu_steps.params import read_params

    root = project_root()
    options = read_params(root / "params.yaml").raw_corpus.storage_options
    corpus = find_corpus(Store(address, options), kind, image_column, caption_column, base)
    write_params(root, corpus, copy, options)
    print(f"{corpus.source} at {corpus.path}", *corpus.notes, sep="\n  ")
    print("params.yaml: raw_corpus now reads it; next: emu materialize raw_corpus")


@plan_app.callback()
def plan(
    context: typer.Context,
    profile: Profile = "paper",
    gpu: Annotated[str, typer.Option(help="A100, H100 or H200")] = "H100",
    num_gpus: Annotated[int, typer.Option(min=1, max=1_000_000)] = 256,
    mfu: Annotated[
        float,
        typer.Option(min=0.001, max=1, help="share of the GPU's peak that training reaches; assumed"),
    ] = 0.4,
    price: Annotated[float, typer.Option(min=0, max=10_000, help="dollars per GPU-hour; assumed")] = 2.5,
    strategy: Annotated[str, typer.Option(help="how GPUs share the states: ddp, fsdp or hsdp")] = "hsdp",
    pairs: Annotated[
        int, typer.Option(min=1, max=10**12, help="pictures to pretrain on; default: as many as in the paper")
    ] = 1_100_000_000,
) -> None:
    """Estimate what the trainings of a profile need: parameters, FLOPs, memory, shards, days and dollars. Runs
    nothing. `emu plan filters` estimates what measuring a corpus needs.
    """
    if context.invoked_subcommand:
        return
    from emu_dagster.commands.plan import find_costs, print_plan
    from emu_models.cost.planning import Cluster, find_gpu
    from emu_steps.profiles import read_profile

    root = project_root()
    params = read_profile(root / "profiles", profile)
    print_plan(params, find_costs(params, root), Cluster(find_gpu(gpu), num_gpus, mfu, price, strategy), pairs)


@plan_app.command(name="filters")
def plan_filters(
    pictures: Annotated[
        int, typer.Option(min=1, max=10**12, help="pictures to measure; default: as many as in the paper")
    ] = 1_100_000_000,
    machines: Annotated[int, typer.Option(min=1, max=1_000_000)] = 1,
    cores: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="of a machine, a worker each; default: as many as this has")
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, max=1_000, help="of a machine")] = 0,
    price: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=10_000,
            help="dollars per GPU-hour with its cores (default 2.5), or per core-hour without GPUs (0.05); assumed",
        ),
    ] = None,
    time_lost: Annotated[
        float, typer.Option(min=0, max=10, help="share of the time on starts, retries and waiting; assumed")
    ] = 0.25,
    measure: Annotated[
        bool, typer.Option("--measure", help="measure the pilot anew now (512 pictures: minutes on a CPU)")
    ] = False,
) -> None:
    """Estimate what measuring a corpus like this project's needs: hours of cores and GPUs, and dollars, from what its
    first pictures cost on this machine.
    """
    from emu_dagster.commands.plan_filters import print_filter_plan
    from emu_data.costs import Machines
    from emu_data.engine.local import num_cores
    from emu_steps.filter_plan import plan_corpus
    from emu_steps.layout import Layout
    from emu_steps.params import read_params

    layout, cores = Layout(project_root()), cores or num_cores()
    if price is None:
        price = 2.5 if gpus else 0.05
    which = Machines(machines * cores, machines * gpus, machines * price * (gpus or cores), time_lost)
    params = read_params(layout.root / "params.yaml")
    print_filter_plan(plan_corpus(layout, params, pictures, which, measure), pictures, which)


@votes_app.command()
def verify(
    round: Annotated[
        str | None, typer.Argument(help="generalist, specialist, appeal or faithfulness; default: all")
    ] = None,
) -> None:
    """Verify the hash chain of each round's log, that the log holds what was recorded, and the studio's chains; after
    an edit the exit code is 1.
    """
    from emu_dagster.commands.studio import verify_chains
    from emu_steps.layout import Layout
    from emu_steps.voting import verify_rounds

    layout = Layout(project_root())
    found = verify_rounds(layout, round)
    for checked in found:
        print(f"{checked.round}: {checked.report}")
    chains = verify_chains(layout, os.environ.get("EMU_STUDIO_DATABASE"), round)
    for name, problems in chains:
        print(f"{name}: {'; '.join(problems) or 'sound'}")
    is_sound = all(checked.is_sound for checked in found) and not any(problems for _, problems in chains)
    raise typer.Exit(int(not is_sound))


@app.command()
def doctor() -> None:
    """Show what is installed, found and missing, and how to fix it."""
    from emu_dagster.commands.doctor import examine, print_findings

    raise typer.Exit(print_findings(examine()))


@app.command()
def up(
    dagster_port: Annotated[int, typer.Option(min=1, max=65535)] = 3000,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    reports_port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    studio_port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
) -> None:
    """Start Dagster's, MLflow's, the reports' and the studio's pages on 127.0.0.1; Ctrl-C stops all four."""
    from emu_dagster.commands.pages import serve
    from emu_dagster.machine.addresses import Ports

    code = serve(Ports(dagster_port, mlflow_port, reports_port, studio_port))
    sys.stdout.flush()
    os._exit(code)  # all is stopped; freeing what Dagster imported would take another second or two


@app.command()
def push(
    remote: Annotated[
        str | None, typer.Option(help="name of a DVC remote; default: DVC's default remote", callback=not_blank)
    ] = None,
) -> None:
    """Upload what is recorded to a DVC remote."""
    from emu_dagster.resources.dvc import DvcRepo

    print(DvcRepo().push(remote or ""))


def use_profile(name: str, overwrite: bool) -> None:
    """Write a profile of profiles/, whole, to params.yaml. A params.yaml that is not the text of a profile was edited:
    it is replaced only if `overwrite`, and kept as params.yaml.bak, or .bak-2 and so on. Raises ValueError otherwise.
    """
    from emu_data.files import atomic_file
    from emu_steps.profiles import list_profiles, profile_text

    folder, target = project_root() / "profiles", project_root() / "params.yaml"
    wanted = profile_text(folder, name).encode()
    found = target.read_bytes() if target.is_file() else b""
    if found not in (b"", wanted) and all(found != profile_text(folder, one).encode() for one in list_profiles(folder)):
        if not overwrite:
            raise ValueError(
                f"params.yaml was edited, and the profile {name} would replace it: `emu materialize` runs the graph "
                "with the edited file, --overwrite replaces it and keeps it as params.yaml.bak"
            )
        print(f"the edited params.yaml is kept as {_keep_beside(target).name}")
    if found != wanted:
        with atomic_file(target) as partial:
            partial.write_bytes(wanted)


def _keep_beside(file: Path) -> Path:
    """Copy a file to a free name beside it, and return the copy's path."""
    kept = file.with_name(f"{file.name}.bak")
    for number in itertools.count(2):
        if not kept.exists():
            break
        kept = file.with_name(f"{file.name}.bak-{number}")
    shutil.copy2(file, kept)
    return kept
