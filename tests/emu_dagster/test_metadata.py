"""What Dagster's pages show: open pictures, links that a browser can follow, short numbers."""

import re
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from emu_dagster.machine.addresses import Ports, known_ports, mlflow_address, remember_ports
from emu_dagster.resources.metadata import OPEN_CHARACTERS, shown
from emu_steps.layout import Layout

RUN = "f614353bec344846ba5b0a6616847129"


def address_in(entry: dg.MetadataValue) -> str:
    assert isinstance(entry, dg.MarkdownMetadataValue) and entry.md_str is not None
    assert len(entry.md_str) < OPEN_CHARACTERS  # otherwise it is behind a button
    return re.findall(r"\((http[^)]*)\)", entry.md_str)[-1]


def test_pictures_reports_and_the_run_are_links_that_are_shown_openly(tmp_path: Path):
    layout = Layout(tmp_path)
    report = layout.report("appeal_report") / "index.html"
    found = shown(layout, "1", RUN, {"win": 12.3456}, {"a sheet": "a sheet (1).png"}, {"report": report})
    assert found["report"].url == "http://127.0.0.1:8000/appeal_report/index.html"
    assert address_in(found["mlflow_run"]) == f"http://127.0.0.1:5000/#/experiments/1/runs/{RUN}"
    picture = address_in(found["a sheet"])
    assert picture.startswith("http://127.0.0.1:5000/get-artifact?") and RUN in picture and " " not in picture
    assert found["win"] == 12.35
    assert [*found] == ["a sheet", "report", "mlflow_run", "win"]  # what people look at first comes first


def test_links_lead_to_where_the_pages_were_served_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layout = Layout(tmp_path)
    assert known_ports(layout) == Ports()
    remember_ports(layout, Ports(3100, 5100, 8100))
    found = shown(layout, "1", RUN, {}, pages={"report": layout.report("x") / "index.html"})
    assert found["report"].url.startswith("http://127.0.0.1:8100/")
    assert address_in(found["mlflow_run"]).startswith("http://127.0.0.1:5100/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example/")
    assert mlflow_address(layout) == "https://mlflow.example"
    (layout.cache / "ports.json").write_text("{}[")
    assert known_ports(layout) == Ports()  # a broken note of ports does not break an asset


def test_a_table_is_shown_row_by_row(tmp_path: Path):
    frame = pd.DataFrame({"gate": ["text_area"], "precision": [0.123456], "recall": [float("nan")]})
    table = shown(Layout(tmp_path), "1", RUN, {}, tables={"quality": frame})["quality"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [record.data for record in table.records] == [{"gate": "text_area", "precision": 0.1235, "recall": "–"}]
