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

MAX_STEPS = 1000  # length of the noise schedules of diffusion models, ours and Stable Diffusion's
MAX_SEED = 2**32 - 1  # the largest that numpy takes


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(callback=not_blank)],
    num: Annotated[int, typer.Option(min=1, max=100_000, help="number of pictures")] = 4,
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder", callback=not_blank)
    ] = "models:/emu@champion",
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="seed of the first picture; the next has seed + 1")
    ] = 0,
    out: Annotated[Path, typer.Option(help="folder for the pictures; nothing in it is overwritten")] = Path(
        "generated"
    ),
    steps: Annotated[int, typer.Option(min=1, max=MAX_STEPS, help="denoising steps")] = 25,
    guidance: Annotated[float, typer.Option(min=0, max=100, help="guidance scale; no guidance at 1 or less")] = 3.0,
) -> None:
    """Draw pictures of a prompt with a registered model."""
    from emu_steps.generating import check_folder, folder_on_disk, write_pictures

    check_folder(out)
    folder = folder_on_disk(model)
    if folder is None:
        with ProcessPoolExecutor(1, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as beside:
            found = beside.submit(find_folder, model)  # MLflow is imported there, torch here: seconds each
            import torch  # noqa: F401

            folder = found.result()
    with imports_without(*unneeded_packages(folder)):
        from emu_models.checkpoints import load_pipeline
        from emu_models.drawing import draw  # noqa: F401
    for path in write_pictures(load_pipeline(folder), prompt, num, seed, out, steps, guidance):
        print(path, flush=True)


@app.command()
def aesthetics_head(
    out: Annotated[Path, typer.Option(dir_okay=False, help="file for the head; replaced if it exists")] = Path(
        "data/models/aesthetics_head.safetensors"
    ),
) -> None:
    """Learn from the votes which pictures raters keep. With filter_ledger.signals.aesthetics_head set to the file, it
    scores every picture.
    """
    from emu_data.formatting import format_number
    from emu_steps.aesthetics_head import fit_from_votes
    from emu_steps.layout import Layout
    from emu_steps.params import read_params

    layout = Layout(project_root())
    params = read_params(layout.root / "params.yaml")
    path = layout.root / out
    if path.suffix != ".safetensors":
        raise ValueError(f"--out {out}: the file's name must end in .safetensors")
    if not path.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {path.parent}; make it, or give another file")
    fitted = fit_from_votes(layout, params, path)
    print(f"{out}: fitted to {fitted.num_pictures} pictures, by {fitted.voters}")
    print(f"leave-one-out R squared {format_number(fitted.r_squared, 2)} (1 is perfect, 0 no better than the mean)")
    print(f"to use it, set filter_ledger.signals.aesthetics_head: {out} in params.yaml")


# What diffusers and transformers import if it is installed, although our own pipeline never uses it: it costs a second
# at the start. (Stable Diffusion's checkpoints may use it: one of their schedulers needs scipy, peft loads adapters.)
NOT_FOR_OURS = ("boto3", "peft", "scipy", "sklearn", "torchvision", "triton")


def unneeded_packages(folder: Path) -> tuple[str, ...]:
    """Return the packages that are not needed to draw with the pipeline saved in `folder`."""
    index = folder / "model_index.json"
    is_ours = index.is_file() and "EmuPipeline" in json.loads(index.read_text())["_class_name"]
    return NOT_FOR_OURS if is_ours else ()


def find_folder(model: str) -> Path:
    """Call `find_model`; a function of this module, because a process that has imported nothing yet runs it."""
    from emu_dagster.registering import find_model

    return find_model(model)
