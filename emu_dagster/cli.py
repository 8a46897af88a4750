"""The command `emu`. Each command is a few lines over the library; `emu --help` lists them."""

import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from emu_dagster.environment import collect_rarely, imports_without, prepare_environment
from emu_steps.layout import project_root

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
votes_app = typer.Typer(no_args_is_help=True, help="Rounds of votes: people's, and the rubric panel's.")
app.add_typer(votes_app, name="votes")


@app.command()
def demo(profile: Annotated[str, typer.Option(help="a file of profiles/, without .yaml")] = "emoji") -> None:
    """Materialise the whole graph, resuming what was interrupted, and print a one-screen summary."""
    began = time.monotonic()
    use_profile(profile)  # before the graph is loaded, whose code versions hold the params
    from emu_dagster.driver import materialize_stale
    from emu_steps.summary import print_summary

    materialize_stale()
    print_summary(time.monotonic() - began)


@app.command()
def materialize(
    assets: Annotated[list[str] | None, typer.Argument(help="asset keys; none means all that are stale")] = None,
) -> None:
    """Materialise the named assets (every partition), or all that are missing or stale."""
    from emu_dagster.driver import materialize_named, materialize_stale

    if assets:
        materialize_named(assets)
    else:
        materialize_stale()


@app.command()
def profile(name: Annotated[str, typer.Argument(help="a file of profiles/, without .yaml")]) -> None:
    """Make a profile the project's params.yaml."""
    use_profile(name)


@app.command()
def ingest(
    address: Annotated[str, typer.Argument(help="a folder, a table's file, or any fsspec address of one")],
    kind: Annotated[str | None, typer.Option(help="img2dataset, folder or table; found out if not given")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="bring the pictures into data/raw")] = False,
    image_column: Annotated[str | None, typer.Option(help="a table's column of paths or URLs")] = None,
    caption_column: Annotated[str | None, typer.Option(help="a table's column of captions")] = None,
    base: Annotated[str | None, typer.Option(help="what a table's paths are below; else its own folder")] = None,
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
def generate(
    prompt: str,
    num: Annotated[int, typer.Option(min=1, help="pictures")] = 4,
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder")
    ] = "models:/emu@champion",
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="folder for the pictures")] = Path("generated"),
    steps: Annotated[int, typer.Option(min=1)] = 25,
    guidance: float = 3.0,
) -> None:
    """Write pictures of a prompt with a registered model."""
    with ProcessPoolExecutor(1, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as beside:
        found = beside.submit(find_folder, model)  # MLflow is imported there, torch here: seconds each
        import torch  # noqa: F401

        folder = found.result()
    with imports_without(*unneeded_packages(folder)):
        from emu_models.latent.checkpoints import load_pipeline
        from emu_models.latent.pipeline import draw

    pipeline = load_pipeline(folder)
    out.mkdir(parents=True, exist_ok=True)
    stem = "".join(c if c.isalnum() else "-" for c in prompt.lower()).strip("-")[:40]
    seeds = range(seed, seed + num)
    for those in filter(None, (seeds[:1], seeds[1:])):  # the first is shown while the others are drawn
        for i, image in zip(those, draw(pipeline, [prompt] * len(those), list(those), steps, guidance), strict=True):
            path = out / f"{stem}-{i}.png"
            image.save(path)
            print(path, flush=True)


@app.command(name="funnel")
def show_funnel(
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="another threshold; may be repeated")
    ] = None,
    examples: Annotated[str | None, typer.Option(metavar="GATE", help="list some rows that it turned away")] = None,
) -> None:
    """Show where the raw pictures went; with --set under other thresholds, in seconds, without a model."""
    from emu_steps import redeciding
    from emu_steps.layout import Layout
    from emu_steps.params import read_params

    layout = Layout(project_root())
    redeciding.show_funnel(layout, read_params(layout.root / "params.yaml"), change or [], examples)


@app.command()
def plan(
    profile: Annotated[str, typer.Option(help="a file of profiles/, without .yaml")] = "paper",
    gpu: Annotated[str, typer.Option(help="A100, H100 or H200")] = "H100",
    num_gpus: Annotated[int, typer.Option(min=1)] = 256,
    mfu: Annotated[float, typer.Option(help="share of the peak that training reaches; assumed")] = 0.4,
    price: Annotated[float, typer.Option(help="dollars an hour of one GPU; assumed")] = 2.5,
    strategy: Annotated[str, typer.Option(help="how states are held: ddp, fsdp or hsdp")] = "hsdp",
    pairs: Annotated[int, typer.Option(min=1, help="pictures to pretrain on; the paper's number")] = 1_100_000_000,
) -> None:
    """Say what the trainings of a profile take: parameters, FLOPs, memory, shards, days and dollars. Runs nothing."""
    from emu_dagster.plan import print_plan
    from emu_models.cost.planning import Cluster, find_gpu
    from emu_steps.params import read_params

    params = read_params(find_profile(profile))
    print_plan(params, Cluster(find_gpu(gpu), num_gpus, mfu, price, strategy), pairs)


@app.command()
def aesthetics_head(
    out: Annotated[Path, typer.Option(help="file for the head")] = Path("data/models/aesthetics_head.safetensors"),
) -> None:
    """Learn from the votes what raters keep; filter_ledger.signals.aesthetics_head then scores every picture by it."""
    from emu_steps.aesthetics_head import fit_from_votes
    from emu_steps.layout import Layout
    from emu_steps.params import read_params

    layout = Layout(project_root())
    fitted = fit_from_votes(layout, read_params(layout.root / "params.yaml"), layout.root / out)
    print(f"{out}: fitted to {fitted.num_pictures} pictures with {fitted.voters}")
    print(f"leave-one-out R squared {fitted.r_squared:.2f} (1 is perfect, 0 no better than the mean)")
    print(f"to use it: filter_ledger.signals.aesthetics_head: {out} in params.yaml")


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
    sys.exit(not all(checked.is_sound for checked in found))


@app.command()
def prune(
    yes: Annotated[bool, typer.Option("--yes", help="remove it; without, it is only listed")] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="unfinished trainings, too")] = False,
) -> None:
    """List what nobody needs below data/, with sizes and why; with --yes remove it."""
    from emu_dagster.pruning import prune as remove

    remove(project_root(), yes, unfinished)


@app.command()
def doctor() -> None:
    """Say what is installed, found and missing, and how to mend it."""
    from emu_dagster.doctor import examine, print_findings

    sys.exit(print_findings(examine()))


@app.command()
def up(dagster_port: int = 3000, mlflow_port: int = 5000, reports_port: int = 8000) -> None:
    """Start Dagster's, MLflow's and the reports' pages on 127.0.0.1; Ctrl-C stops all three."""
    from emu_dagster.addresses import Ports
    from emu_dagster.pages import serve

    code = serve(Ports(dagster_port, mlflow_port, reports_port))
    sys.stdout.flush()
    os._exit(code)  # all is stopped; to free what Dagster imported would take another second or two


@app.command()
def push(remote: Annotated[str, typer.Option(help="name of a DVC remote; empty takes the default")] = "") -> None:
    """Upload what is recorded to a DVC remote."""
    from emu_dagster.resources.dvc import DvcRecord

    print(DvcRecord().push(remote))


def find_folder(model: str) -> Path:
    """`find_model`, for a process in which nothing has been imported yet."""
    from emu_dagster.registering import find_model

    return find_model(model)


# What diffusers and transformers import where it is installed, and our own pipeline never uses: a second of a start.
# (Stable Diffusion's checkpoints may use it: a scheduler of theirs wants scipy, peft loads adapters.)
NOT_FOR_OURS = ("boto3", "peft", "scipy", "sklearn", "torchvision", "triton")


def unneeded_packages(folder: Path) -> tuple[str, ...]:
    """The packages that the pipeline saved in `folder` can be drawn with without."""
    index = folder / "model_index.json"
    is_ours = index.is_file() and "EmuPipeline" in json.loads(index.read_text())["_class_name"]
    return NOT_FOR_OURS if is_ours else ()


def find_profile(name: str) -> Path:
    """profiles/NAME.yaml. ValueError names the profiles where there is no such one."""
    folder = project_root() / "profiles"
    if not (folder / f"{name}.yaml").is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ValueError(f"there is no profile {name!r}; there are: {known}")
    return folder / f"{name}.yaml"


def use_profile(name: str) -> None:
    """Writes profiles/NAME.yaml to params.yaml."""
    from emu_data.files import atomic_file

    source = find_profile(name)
    target = project_root() / "params.yaml"
    if not target.is_file() or target.read_bytes() != source.read_bytes():
        with atomic_file(target) as partial:
            shutil.copyfile(source, partial)


def main() -> None:
    """Runs the command; an expected error is one line, not a traceback (EMU_DEBUG=1 shows it)."""
    collect_rarely()
    prepare_environment()
    try:
        app()
    except KeyboardInterrupt:
        print("emu: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("EMU_DEBUG"):
            raise
        print(f"emu: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
