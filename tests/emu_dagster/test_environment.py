"""Imports as if packages were not installed: libraries do not find them, and afterwards all is as before."""

import importlib
import importlib.util
import logging
import sys

import pytest

from emu_dagster.machine.environment import imports_without


def test_a_hidden_package_cannot_be_found_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with imports_without("colorsys"):
        assert importlib.util.find_spec("colorsys") is None  # how transformers and diffusers check
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
    assert importlib.import_module("colorsys").rgb_to_hsv(0, 0, 1) == (2 / 3, 1, 1)


def test_what_was_imported_before_stays() -> None:
    with imports_without("sys", "importlib"):
        assert importlib.import_module("sys") is sys
    assert sys.modules["sys"] is sys


def test_no_library_says_that_a_hidden_package_is_missing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with imports_without("colorsys"):
        logging.getLogger("some.library").warning("colorsys is not installed")
    logging.getLogger("some.library").warning("after it")
    assert [record.message for record in caplog.records] == ["after it"]
