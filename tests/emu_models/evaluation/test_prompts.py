from pathlib import Path

import pytest

from emu_models.evaluation.prompts import common_prompts, read_parti_prompts

HEADER = "Prompt\tCategory\tChallenge\tNote\n"


def test_common_prompts_come_by_count_then_name():
    captions = ["pear", "fig", "apple", "pear", " apple ", "plum", ""]
    assert common_prompts(captions, 3) == ["apple", "pear", "fig"]
    assert len(common_prompts(captions, 10)) == 4
    with pytest.raises(ValueError, match="no captions"):
        common_prompts([" "], 1)


def test_parti_prompts_with_stray_quotes_and_windows_line_ends(tmp_path: Path):
    path = tmp_path / "PartiPrompts.tsv"
    path.write_bytes(
        "\ufeff".encode() + (HEADER + 'a sign that says "NO\tAbstract\tBasic\tn1\n\nb\tArts\tBasic\n').encode()
    )
    found = read_parti_prompts(path)
    assert [one.prompt for one in found] == ['a sign that says "NO', "b"]
    assert found[0].category == "Abstract" and found[0].note == "n1" and found[1].note == ""
    path.write_bytes((HEADER + "b\tArts\tBasic\tn\n").replace("\n", "\r\n").encode())
    assert read_parti_prompts(path)[0].note == "n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Prompt,Category\na,b\n", "lacks the columns"),
        (b"", "lacks the columns"),
        (HEADER.encode(), "no prompts"),
        ((HEADER + "a\tb\tc\td\n\tb\tc\td\n").encode(), "line 3: the prompt is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "prompts.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_parti_prompts(path)
    with pytest.raises(ValueError, match="does not exist"):
        read_parti_prompts(tmp_path / "none.tsv")
