"""`make gpu` runs the tests marked gpu where there is a CUDA device; `make gpu-packages` brings what such a machine
lacks.

python scripts/gpu.py run         run tests/gpu, and write gpu.json (EMU_GPU_OUT names another file)
python scripts/gpu.py packages    put packages for Python 3.12 on x86-64 into .gpu-packages

The machine needs Python, torch and the usual scientific packages, but no network. Only packages that hold no compiled
torch code are brought.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".gpu-packages"
# What tests/gpu imports and a machine with torch, transformers, pandas and pyarrow lacks.
BROUGHT = (
    *("diffusers", "open-clip-torch", "ftfy", "wcwidth", "easyocr", "pyclipper", "python-bidi", "shapely"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
)
LIMIT = 60 * 2**20  # bytes of the folder: what such a machine may be sent
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def bring() -> None:
    """Install the packages, in the versions of requirements.lock, into one folder. Raises SystemExit if it is too
    large."""
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    wanted = [f"{name}=={locked[name]}" for name in BROUGHT]
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--only-binary=:all:"),
            *(
                "--no-compile",
                "--python-version=3.12",
                "--implementation=cp",
                *platforms,
                f"--target={FOLDER}",
                *wanted,
            ),
        ],
        check=True,
    )
    shutil.rmtree(FOLDER / "easyocr/character")  # of the recogniser's languages, which nothing here reads
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    if size > LIMIT:
        raise SystemExit(f"{FOLDER.name} has {size / 2**20:.0f} MiB, more than the {LIMIT / 2**20:.0f} that may travel")
    print(f"{FOLDER.name}: {size / 2**20:.0f} MiB, {len(wanted)} packages")


def run() -> int:
    """Run the tests and return their exit status; 0, with a sentence, where no GPU is at hand."""
    if FOLDER.is_dir():
        sys.path.insert(0, str(FOLDER))
    try:
        import torch
    except ImportError:
        print("make gpu: this Python has no torch, so nothing was run on a GPU")
        return 0
    if not torch.cuda.is_available():
        print("make gpu: no CUDA device is at hand, so nothing was run on a GPU")
        return 0
    import pytest

    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")])
    # without the settings of pyproject.toml and the fixtures of tests/conftest.py, which need packages of the whole
    # environment
    alone = ["-c", os.devnull, "--rootdir", str(ROOT), "--confcutdir", str(ROOT / "tests/gpu")]
    return int(pytest.main([*alone, "--import-mode=importlib", "-q", "--durations=10", str(ROOT / "tests/gpu")]))


if __name__ == "__main__":
    sys.exit(bring() if sys.argv[1:] == ["packages"] else run())
