"""A toy training and its publishing, killed by SIGKILL at writes that are counted, as a program.

python tests/killed_training.py JSON    JSON: {"root": …, "shards": …, "rows": …, "autoencoder": …, "runs": [[N, S], …]}

Each run is a process of its own, forked here so that the imports are paid once: it trains S steps and is killed before
its N-th write (0: never), where a write is whatever changes the project: a file opened for writing, a rename, a
removal, a new folder. A line is printed for each: its writes, the signal that ended it, a digest of what is published.
"""

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from emu_data.files import file_sha256, fingerprint
from emu_models.latent import trainings
from emu_models.training.cache import hash_packaged_text_encoder
from emu_steps.layout import Layout
from emu_steps.training_jobs import publish, training_folder
from tests.toy_training import LOOP, denoiser_job

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


def train_and_publish(given: dict[str, Any]) -> None:
    layout = Layout(Path(given["root"]))
    corpus = (Path(given["shards"]), Path(given["rows"]))
    loop = replace(LOOP, checkpoint_minutes=0.0, num_steps=given["num_steps"])
    job, _ = denoiser_job(corpus, layout.cache, Path(given["autoencoder"]), loop)
    job = replace(job, states=training_folder(layout, "toy"), out=layout.model("toy"))
    result = trainings.train_denoiser(job)
    publish(layout, "toy", [{**asdict(result), "out": str(job.out)}])


def run(given: dict[str, Any], kill_at: int, pipe: int) -> None:
    count: int = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        is_write = event in WRITES
        if event == "open":
            path, mode, flags = arguments
            is_write = bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if is_write and isinstance(arguments[0], str | os.PathLike) and given["root"] in os.fspath(arguments[0]):
            count += 1
            if count == kill_at:
                os.write(pipe, b"%d" % count)
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    sys.addaudithook(hook)
    train_and_publish(given)
    os.write(pipe, b"%d" % count)
    os._exit(0)


def digest_published(root: Path) -> str:
    """Of all files of the published model, "none" where there is none."""
    folder = Layout(root).model("toy")
    files = {f.relative_to(folder).as_posix(): file_sha256(f) for f in folder.rglob("*") if f.is_file()}
    return fingerprint(files) if files else "none"


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    hash_packaged_text_encoder()  # remembered, and thereby paid once too
    for kill_at, num_steps in given["runs"]:
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            try:
                run({**given, "num_steps": num_steps}, kill_at, writing)
            finally:
                os._exit(1)
        os.close(writing)
        status = os.waitpid(child, 0)[1]
        ended = os.WTERMSIG(status) or os.WEXITSTATUS(status)
        print(os.read(reading, 20).decode(), ended, digest_published(Path(given["root"])), flush=True)
