"""How long a command takes to answer: `make bench NAME=starts`, in a project whose demo is finished.

Our commands and the named peers are started in turn, --repeats times, and the shortest time of each counts: whatever
else the machine does can only add to it. Ours are commands that draw nothing, until they end, and `emu generate`, until
its first picture. The peers show how fast the machine is: `dagster --help`, `mlflow --help`, and
`DiffusionPipeline.from_pretrained` of diffusers on the same pipeline, without drawing. CPU seconds (user and system,
with children) are printed beside the wall clock: on a busy machine they are nearer to what a quiet one takes.

    python benchmarks/starts.py [--repeats 5] [--model data/models/quality_tuned]

Prints `claim NAME: VALUE (goal GOAL)` for each claim, in seconds; the exit code is 1 if one is missed.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emu_dagster.machine.environment import prepare_environment
from emu_steps.layout import project_root

ANSWER, FIRST_PICTURE = 2.0, 5.0  # seconds; the goals of issue 12
EMU = (sys.executable, "-m", "emu_dagster.cli")
ANSWERS = {
    "help": ("--help",),
    "votes_verify": ("votes", "verify"),
    "funnel": ("funnel",),
    "prune": ("prune",),
    "doctor": ("doctor",),
    "plan": ("plan",),
    "materialize_nothing": ("materialize",),
}
LOAD = """
import sys
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
"""
NOTHING_TO_DO = "everything is up to date"


@dataclass(frozen=True)
class Start:
    """Seconds until a command's end or its first line, seconds of CPU until its end, and what it printed."""

    wall: float
    cpu: float
    printed: str


def measure(command: Sequence[str], to_first_line: bool = False) -> Start:
    """Run a command to its end. Raises SystemExit, with its last line, if it fails."""
    before, began = _cpu(), time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        at_first = time.monotonic() - began
        printed = first + process.stdout.read()
        code = process.wait()
        wall = at_first if to_first_line else time.monotonic() - began
        if code:
            errors.seek(0)
            words = (errors.read() + printed).strip().splitlines()
            sys.exit(f"{' '.join(command)}: exit code {code}: {words[-1] if words else 'nothing printed'}")
    return Start(wall, _cpu() - before, printed)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, default=project_root() / "data/models/quality_tuned")
    arguments = parser.parse_args()
    prepare_environment()
    if not (arguments.model / "model_index.json").is_file():
        sys.exit(f"{arguments.model} holds no pipeline; run `make demo` first, or name one with --model")
    bin_folder, model = Path(sys.executable).parent, str(arguments.model)
    with tempfile.TemporaryDirectory() as pictures:
        generate = (*EMU, "generate", "a red apple", "--num", "2", "--model", model, "--out", pictures)
        runs = {name: (*EMU, *options) for name, options in ANSWERS.items()} | {
            "first_picture": generate,
            "peer: dagster --help": (str(bin_folder / "dagster"), "--help"),
            "peer: mlflow --help": (str(bin_folder / "mlflow"), "--help"),
            "peer: diffusers loads the pipeline": (sys.executable, "-c", LOAD, model),
        }
        best: dict[str, Start] = {}
        for _ in range(arguments.repeats):
            for name, command in runs.items():
                found = measure(command, to_first_line=name == "first_picture")
                if name == "materialize_nothing" and NOTHING_TO_DO not in found.printed:
                    continue  # it had something to make: in the next round it has nothing to do
                if name not in best or found.wall < best[name].wall:
                    best[name] = found
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, shortest of {arguments.repeats}")
    for name, start in best.items():
        print(f"{name:36} {start.wall:6.2f} s, CPU {start.cpu:5.2f} s")
    goals = dict.fromkeys(ANSWERS, ANSWER) | {"first_picture": FIRST_PICTURE}
    missed = 0
    for name, goal in goals.items():
        value = best[name].wall if name in best else float("nan")
        missed += not value <= goal
        print(f"claim {name}: {value:.2f} (goal {goal:.1f})", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
