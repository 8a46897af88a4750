"""What tests on a real GPU share. They need only torch and the packages of `make gpu-packages`, so they are collected
without tests/conftest.py, and what they measure is written into one file.

`make gpu` runs them: EMU_GPU_OUT names the file (default gpu.json).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

MEASURED: dict[str, Any] = {}


@pytest.fixture
def note() -> Callable[..., None]:
    """Return a function that keeps measured values under names."""
    return lambda **values: MEASURED.update(values)


@pytest.fixture(autouse=True)
def empty_gpu() -> None:
    """Give back what the test before has left."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write what was measured, also if some test failed."""
    if not torch.cuda.is_available():
        return
    properties = torch.cuda.get_device_properties(0)
    about = {"card": properties.name, "memory": properties.total_memory, "torch": torch.__version__}
    found = {**about, "exit_status": int(exitstatus), "measured": MEASURED}
    Path(os.environ.get("EMU_GPU_OUT", "gpu.json")).write_text(json.dumps(found, indent=2) + "\n")
