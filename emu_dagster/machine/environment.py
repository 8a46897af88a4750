"""Which switches keep the libraries quiet and off the network, and where Dagster keeps its records.

The Makefile exports the same switches; this is for whoever starts `emu`, `dagster` or `pytest` without make.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from emu_steps.layout import project_root

# No model hub is asked (weights come as packages or by path) and nothing is reported to anybody.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MPLBACKEND": "Agg",
}

# A tracking server that does not answer is to be told of within seconds; MLflow's own numbers (7 retries, 120 s) let an
# asset wait for four minutes. A server that is there and slow wants more: set them. Chosen here.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}

# torch, diffusers and mlflow make a million objects that stay; with Python's own numbers (700, 10, 10) the collector
# looks at them again and again while they are made, a tenth of a start's time (docs/log.md, 2026-11-25). Chosen here.
COLLECTOR_THRESHOLDS = (50_000, 50, 100)


def collect_rarely() -> None:
    """For processes of ours that import for seconds: called first in them."""
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def prepare_environment() -> None:
    """Set what is not set yet: QUIET, PATIENCE, EMU_ROOT and DAGSTER_HOME (absolute, as Dagster demands).

    To be called before mlflow, transformers or a Dagster instance is used.
    """
    root = project_root()
    for name, value in {**QUIET, **PATIENCE, "EMU_ROOT": str(root), "DAGSTER_HOME": str(root / "dagster_home")}.items():
        os.environ.setdefault(name, value)


@contextmanager
def imports_without(*packages: str) -> Iterator[None]:
    """Imports inside are done as if these packages were not installed, which libraries with optional parts ask for.

    Packages that are imported already stay. What was imported inside lacks those parts until the process
    ends.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: Python's own way to bar an import
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
