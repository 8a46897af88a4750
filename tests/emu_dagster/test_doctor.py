"""`emu doctor`: finds what is here, says what is not and how to fix it, and its exit code follows from that."""

import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from emu_dagster.commands.doctor import Finding, examine, print_findings
from tests.profiles import text_of


def by_name() -> dict[str, Finding]:
    return {finding.what: finding for finding in examine()}


Usage = namedtuple("Usage", "total used free")


def a_disk_with(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    """Make the disk have so many free bytes, whatever the machine's own has."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1e11, 1e11 - free, free))


def test_a_sound_project_is_all_right(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_disk_with(monkeypatch, free=5e10)
    (project / "params.yaml").write_text(text_of("smoke"))
    (project / ".dvc").mkdir()
    findings = by_name()
    assert [name for name, finding in findings.items() if finding.needed and not finding.good] == []
    assert "on " in findings["torch"].found and "threads" in findings["torch"].found
    assert print_findings(list(findings.values())) == 0
    assert "craft_mlt_25k.pth" in capsys.readouterr().out


def test_what_is_missing_is_named_with_its_fix(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "relative/home")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    findings = by_name()
    assert "not absolute" in findings["DAGSTER_HOME"].found
    assert "HF_HUB_OFFLINE" in findings["switches"].found
    assert "params.yaml is missing" in findings["project"].found and ".dvc is missing" in findings["project"].found
    assert all(finding.fix for finding in findings.values() if not finding.good)
    assert print_findings(list(findings.values())) == 1
    assert "EMU_ROOT" in capsys.readouterr().out


def test_a_full_disk_is_not_all_right(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_disk_with(monkeypatch, free=1.4e9)
    finding = by_name()["disk"]
    assert not finding.good and finding.needed and "1.4 GB free" in finding.found


def test_params_that_do_not_load_are_not_all_right(project: Path) -> None:
    text = text_of("smoke")
    for given, said in ((text.replace("ema_decay: 0.99", "ema_decay: 1.99"), "ema_decay"), ("a: [", "not YAML")):
        (project / "params.yaml").write_text(given)
        finding = by_name()["params"]
        assert not finding.good and said in finding.found and "emu profile" in finding.fix
        assert print_findings([finding]) == 1


def test_the_doctor_repairs_what_a_kill_left(project: Path) -> None:
    (project / ".dvc").mkdir()
    (project / "dvc.lock").write_text("")
    assert "unreadable" in by_name()["records"].found
    assert by_name()["records"].found == "dvc.lock is whole"


def test_a_server_that_does_not_answer_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound, but nothing listens
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        finding = by_name()["mlflow"]
    assert not finding.good and uri in finding.found and "unset" in finding.found


def test_a_missing_browser_is_not_a_failure() -> None:
    assert print_findings([Finding("chromium", False, "none", "apt-get install chromium", needed=False)]) == 0
