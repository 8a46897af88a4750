import numpy as np
import pytest

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


def test_labels_and_pictures_must_be_as_many_and_none_is_a_sheet_too():
    with pytest.raises(ValueError, match="2 pictures but 1 labels"):
        contact_sheet(np.zeros((2, 8, 8, 3), np.uint8), ["a"])
    assert contact_sheet(np.zeros((0, 8, 8, 3), np.uint8), []).size[0] > 0
