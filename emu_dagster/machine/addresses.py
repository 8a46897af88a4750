"""Where the pages of this project are served, as last noted by `emu up`, so that records can link to them."""

import contextlib
import errno
import json
import os
import socket
from dataclasses import asdict, dataclass

from emu_data.files import write_json
from emu_steps.layout import Layout

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """Ports on HOST at which `emu up` serves the pages."""

    dagster: int = 3000
    mlflow: int = 5000
    reports: int = 8000
    studio: int = 8001


def remember_ports(layout: Layout, ports: Ports) -> None:
    """Write data/cache/ports.json; without that file the defaults apply."""
    layout.cache.mkdir(parents=True, exist_ok=True)
    write_json(layout.cache / "ports.json", asdict(ports))


def known_ports(layout: Layout) -> Ports:
    """Return the ports that `emu up` used last, or the defaults if it never ran or the file cannot be read."""
    try:
        return Ports(**json.loads((layout.cache / "ports.json").read_text()))
    except (OSError, ValueError, TypeError):  # missing, or of another version: only links depend on it
        return Ports()


def refuse_taken(option: str, port: int, host: str = HOST) -> None:
    """Raise ValueError if a server cannot listen at a port. option: by which another can be chosen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            told = "is taken" if error.errno == errno.EADDRINUSE else f"of {host}: {error.strerror}"
            raise ValueError(f"port {port} {told}; choose another with {option}") from None


def mlflow_address(layout: Layout) -> str:
    """Return the http address of MLflow's pages: that of the tracking server if one is set, otherwise of the server
    that `emu up` starts.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) else f"http://{HOST}:{known_ports(layout).mlflow}"


def report_address(layout: Layout, page: str) -> str:
    """Return the http address at which `emu up` serves a page. page: its path relative to data/reports."""
    return f"http://{HOST}:{known_ports(layout).reports}/{page}"


def studio_address(layout: Layout) -> str:
    """The http address at which `emu up` or `emu studio` serves the studio."""
    return f"http://{HOST}:{known_ports(layout).studio}"
