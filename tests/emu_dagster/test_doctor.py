"""`emu doctor`: finds what is here, says what is not and how to mend it, and its exit code follows."""

from pathlib import Path

import pytest

from emu_dagster.doctor import Finding, examine, print_findings


def by_name() -> dict[str, Finding]:
    return {finding.what: finding for finding in examine()}


def test_a_sound_project_is_all_right(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (project / name).write_text("{}")
    findings = by_name()
    assert [name for name, finding in findings.items() if finding.needed and not finding.good] == []
    assert "on " in findings["torch"].found and "threads" in findings["torch"].found
    assert print_findings(list(findings.values())) == 0
    assert "craft_mlt_25k.pth" in capsys.readouterr().out


def test_what_is_missing_is_named_with_its_remedy(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "relative/home")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    findings = by_name()
    assert "not absolute" in findings["DAGSTER_HOME"].found
    assert "HF_HUB_OFFLINE" in findings["switches"].found
    assert "no params.yaml and no dvc.yaml" in findings["project"].found
    assert all(finding.mend for finding in findings.values() if not finding.good)
    assert print_findings(list(findings.values())) == 1
    assert "EMU_ROOT" in capsys.readouterr().out


def test_a_missing_browser_is_no_failure() -> None:
    assert print_findings([Finding("chromium", False, "none", "apt-get install chromium", needed=False)]) == 0
