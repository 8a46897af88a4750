"""Where the pages of this project are served: what `emu up` said last, so that what is recorded can link to them."""

import json
import os
from dataclasses import asdict, dataclass

from emu_data.files import write_json
from emu_steps.layout import Layout

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    dagster: int = 3000
    mlflow: int = 5000
    reports: int = 8000


def remember_ports(layout: Layout, ports: Ports) -> None:
    """Writes data/cache/ports.json; without it the defaults count."""
    layout.cache.mkdir(parents=True, exist_ok=True)
    write_json(layout.cache / "ports.json", asdict(ports))


def known_ports(layout: Layout) -> Ports:
    try:
        return Ports(**json.loads((layout.cache / "ports.json").read_text()))
    except (OSError, ValueError, TypeError):  # none yet, or of another version: only links depend on it
        return Ports()


def mlflow_address(layout: Layout) -> str:
    """http address of MLflow's pages: of the tracking server where one is set, else the one that `emu up` starts."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) else f"http://{HOST}:{known_ports(layout).mlflow}"


def report_address(layout: Layout, page: str) -> str:
    """http address of a file below data/reports, given relative to it, as `emu up` serves it."""
    return f"http://{HOST}:{known_ports(layout).reports}/{page}"
