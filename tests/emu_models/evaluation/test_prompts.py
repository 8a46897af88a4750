import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_models.evaluation.prompts import common_prompts, read_prompt_file

HEADER = "Prompt\tCategory\tChallenge\tNote\n"


def test_common_prompts_are_ordered_by_count_then_name():
    captions = ["pear", "fig", "apple", "pear", " apple ", "plum", ""]
    assert common_prompts(captions, 3) == ["apple", "pear", "fig"]
    assert len(common_prompts(captions, 10)) == 4
    with pytest.raises(ValueError, match="no captions"):
        common_prompts([" "], 1)


def test_parti_prompts_with_stray_quotes_and_windows_line_ends(tmp_path: Path):
    path = tmp_path / "PartiPrompts.tsv"
    path.write_bytes(
        "\ufeff".encode() + (HEADER + 'a sign that says "NO\tAbstract\tBasic\tn1\n\n"b"\tArts\tBasic\n').encode()
    )
    found = read_prompt_file(path)
    assert (found.prompts, found.num_blank, found.num_twice) == (['a sign that says "NO', '"b"'], 1, 0)
    path.write_bytes((HEADER + "b\tArts\tBasic\tn\nb\tAbstract\n").replace("\n", "\r\n").encode())
    assert (read_prompt_file(path).prompts, read_prompt_file(path).num_twice) == (["b"], 1)


# Prompts of any script, with quotes, commas, tabs and characters at which other readers split lines. (Ends are
# stripped; surrogates are not text; a file with a zero byte is not a text file.)
ANY = st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r\n")
PROMPTS = st.lists(st.text(ANY, max_size=60).map(str.strip).filter(bool), min_size=1, max_size=8)


def once(prompts: list[str]) -> list[str]:
    return list(dict.fromkeys(prompts))


@given(PROMPTS, st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.booleans())
def test_prompts_one_per_line_are_read_as_they_were_written(tmp_path_factory, prompts, end, encoding, ends):
    path = tmp_path_factory.mktemp("prompts") / "mine.txt"
    lines = ["first, without tabs", *(prompt.replace("\ufeff", "") or "x" for prompt in prompts)]
    lines = [line.strip() or "x" for line in lines]
    path.write_bytes((end.join(lines) + (end if ends else "")).encode(encoding))
    found = read_prompt_file(path)
    assert found.prompts == once(lines)
    assert found.num_twice == len(lines) - len(set(lines)) and found.num_blank == 0


@given(PROMPTS)
def test_a_table_written_by_python_is_read_as_it_was_written(tmp_path_factory, prompts):
    folder = tmp_path_factory.mktemp("prompts")
    table = io.StringIO()
    csv.writer(table).writerows([["id", "Text"], *([str(i), prompt] for i, prompt in enumerate(prompts))])
    (folder / "mine.csv").write_bytes(table.getvalue().encode())
    assert read_prompt_file(folder / "mine.csv").prompts == once(prompts)
    lines = [json.dumps(p if i % 2 else {"prompt": p, "n": i}, ensure_ascii=bool(i % 3)) for i, p in enumerate(prompts)]
    (folder / "mine.jsonl").write_bytes("\n".join(lines).encode())
    assert read_prompt_file(folder / "mine.jsonl").prompts == once(prompts)


def test_quotes_that_a_spreadsheet_added_are_removed(tmp_path: Path):
    (tmp_path / "mine.tsv").write_text('prompt\tn\n"a sign ""OPEN"" by night"\t1\n"quoted whole"\t2\n')
    assert read_prompt_file(tmp_path / "mine.tsv").prompts == ['a sign "OPEN" by night', '"quoted whole"']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "mine.csv",
            b"id,category\na,b\n",
            "names no column prompt or .* caption, only 'id', 'category'",
        ),
        ("mine.tsv", b"", "names no column .*and is empty"),
        ("mine.tsv", HEADER.encode(), "holds no prompts"),
        ("mine.txt", b"\n \n\n", "holds no prompts"),
        ("mine.txt", b"a\nb\n\xe9t\xe9\n", "line 3, is not UTF-8 text"),
        ("mine.txt", b"PAR1\0\0", "is not text"),
        ("mine.jsonl", b'"a"\n{"prompt": 3}\n', "line 2, has no text"),
        ("mine.jsonl", b'"a"\n{\n', "line 2, is not JSON"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as reported:
        read_prompt_file(path)
    assert "\n" not in str(reported.value)
    with pytest.raises(ValueError, match="there is no file"):
        read_prompt_file(tmp_path / "none.tsv")
