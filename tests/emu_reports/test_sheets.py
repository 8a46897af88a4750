from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emu_reports import sheets
from emu_reports.sheets import GROUND, contact_sheet


def test_a_sheet_holds_every_picture_in_order_and_writes_its_label():
    shades = np.arange(5, dtype=np.uint8) * 50
    images = np.broadcast_to(shades[:, None, None, None], (5, 20, 20, 3))
    sheet = np.asarray(contact_sheet(images, ["red apple", "", "", "", "a name that is far too long"], 3, tile=40))
    tops = [4 + row * sheet.shape[0] // 2 for row in (0, 1)]
    centres = [(tops[i // 3] + 20, 4 + (i % 3) * 44 + 20) for i in range(5)]
    assert [int(sheet[y, x, 0]) for y, x in centres] == shades.tolist()
    ground = np.array(GROUND)
    under = [sheet[y + 21 : y + 32, x - 20 : x + 20] for y, x in centres]
    assert [bool((part != ground).any()) for part in under] == [True, False, False, False, True]
    assert (sheet[:, -4:] == ground).all()


def test_labels_and_pictures_must_be_equally_many_and_none_is_a_sheet_too():
    with pytest.raises(ValueError, match="2 pictures but 1 labels"):
        contact_sheet(np.zeros((2, 8, 8, 3), np.uint8), ["a"])
    assert contact_sheet(np.zeros((0, 8, 8, 3), np.uint8), []).size[0] > 0


@given(st.text(st.characters(codec=None), max_size=300))
@example("two\nlines\r\nand\ttabs")
@example("half a pair \ud800, a zero \0, a mark \u202e, \u0301\u0301")
@example("x" * 10_000)
def test_any_words_of_a_corpus_can_be_under_a_picture(label: str):
    sheet = contact_sheet(np.zeros((1, 8, 8, 3), np.uint8), [label], tile=40)
    beyond = np.asarray(sheet)[-14:, 46:]
    assert (beyond == GROUND).all()


def test_a_very_long_label_takes_no_longer_than_what_fits(monkeypatch: pytest.MonkeyPatch):
    measured = []
    monkeypatch.setattr(sheets, "_font", lambda: SimpleNamespace(getlength=lambda text: measured.append(text) or 99.0))
    sheets._fit("word " * 100_000, 40)
    assert sum(map(len, measured)) < 2_000
