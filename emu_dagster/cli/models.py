"""Commands that use or make models outside the graph."""

import json
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from emu_dagster.cli.app import app, not_blank
from emu_dagster.machine.environment import imports_without
from emu_steps.layout import project_root

MOST_STEPS = 1000  # of the noise schedules of diffusion models, ours and Stable Diffusion's
MOST_SEED = 2**32 - 1


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(callback=not_blank)],
    num: Annotated[int, typer.Option(min=1, max=100_000, help="pictures")] = 4,
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder", callback=not_blank)
    ] = "models:/emu@champion",
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of the first picture; the others' follow")] = 0,
    out: Annotated[Path, typer.Option(help="folder for the pictures; none there is overwritten")] = Path("generated"),
    steps: Annotated[int, typer.Option(min=1, max=MOST_STEPS, help="denoising steps")] = 25,
    guidance: Annotated[float, typer.Option(min=0, max=100, help="scale of the guidance; 1 or less is none")] = 3.0,
) -> None:
    """Write pictures of a prompt with a registered model."""
    from emu_steps.generating import check_folder, write_pictures

    check_folder(out)
    with ProcessPoolExecutor(1, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as beside:
        found = beside.submit(find_folder, model)  # MLflow is imported there, torch here: seconds each
        import torch  # noqa: F401

        folder = found.result()
    with imports_without(*unneeded_packages(folder)):
        from emu_models.latent.checkpoints import load_pipeline
        from emu_models.latent.pipeline import draw  # noqa: F401
    for path in write_pictures(load_pipeline(folder), prompt, num, seed, out, steps, guidance):
        print(path, flush=True)


@app.command()
def aesthetics_head(
    out: Annotated[Path, typer.Option(dir_okay=False, help="file for the head, replaced if it is there")] = Path(
        "data/models/aesthetics_head.safetensors"
    ),
) -> None:
    """Learn from the votes what raters keep; filter_ledger.signals.aesthetics_head then scores every picture by it."""
    from emu_data.formatting import format_number
    from emu_steps.aesthetics_head import fit_from_votes
    from emu_steps.layout import Layout
    from emu_steps.params import read_params

    layout = Layout(project_root())
    params = read_params(layout.root / "params.yaml")
    path = layout.root / out
    if path.suffix != ".safetensors":
        raise ValueError(f"--out {out}: a head is a file NAME.safetensors")
    if not path.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {path.parent}; make it, or give another file")
    fitted = fit_from_votes(layout, params, path)
    print(f"{out}: fitted to {fitted.num_pictures} pictures with {fitted.voters}")
    print(f"leave-one-out R squared {format_number(fitted.r_squared, 2)} (1 is perfect, 0 no better than the mean)")
    print(f"to use it: filter_ledger.signals.aesthetics_head: {out} in params.yaml")


# What diffusers and transformers import where it is installed, and our own pipeline never uses: a second of a start.
# (Stable Diffusion's checkpoints may use it: a scheduler of theirs wants scipy, peft loads adapters.)
NOT_FOR_OURS = ("boto3", "peft", "scipy", "sklearn", "torchvision", "triton")


def unneeded_packages(folder: Path) -> tuple[str, ...]:
    """The packages that the pipeline saved in `folder` can be drawn with without."""
    index = folder / "model_index.json"
    is_ours = index.is_file() and "EmuPipeline" in json.loads(index.read_text())["_class_name"]
    return NOT_FOR_OURS if is_ours else ()


def find_folder(model: str) -> Path:
    """`find_model`, for a process in which nothing has been imported yet."""
    from emu_dagster.registering import find_model

    return find_model(model)
