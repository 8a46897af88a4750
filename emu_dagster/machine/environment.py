"""Variables that keep the libraries quiet and off the network, and say where Dagster keeps its records.

The Makefile exports the same variables; these are for `emu`, `dagster` or `pytest` started without make.
"""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from emu_steps.layout import project_root

# No model hub is used (weights come as packages or by path), and no usage data is sent.
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

# A tracking server that does not answer must be reported within seconds; with MLflow's defaults (7 retries, 120 s) an
# asset would wait for four minutes. For a slow server, set higher values in the environment. Chosen here.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}

# Importing torch, diffusers and mlflow creates a million permanent objects; with Python's defaults (700, 10, 10) the
# collector scans them again and again, which takes a tenth of the start-up time (docs/log.md, 2026-11-25). Chosen here.
COLLECTOR_THRESHOLDS = (50_000, 50, 100)


def collect_rarely() -> None:
    """Make the garbage collector run rarely; called first in processes whose imports take seconds."""
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
    """Import inside as if these packages were not installed, so that libraries skip their optional parts.

    Packages that are already imported stay. What was imported inside lacks the optional parts until the process ends.
    Warnings are not logged inside: a library would say that a hidden package is not installed.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is Python's own way to block an import
    before = logging.root.manager.disable
    if hidden:
        logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        for name in hidden:
            sys.modules.pop(name, None)
