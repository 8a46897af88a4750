import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from emu_data.files import atomic_dir, atomic_file, file_sha256, fingerprint, write_json, write_parquet


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 3
    names: tuple[str, ...] = ("a",)


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["value.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for content in ("one", "two"):
        with atomic_dir(folder) as temporary:
            (temporary / content).write_text(content)
    assert os.listdir(folder) == ["two"]
    with pytest.raises(KeyboardInterrupt), atomic_dir(folder) as temporary:
        (temporary / "three").write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(folder) == ["two"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_fingerprint_depends_on_values_not_on_objects(tmp_path: Path) -> None:
    assert fingerprint(Config()) == fingerprint({"names": ["a"], "size": 3})
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert len({fingerprint(value) for value in (Config(), Config(size=4), Config(names=()), 3, "3", 3.5)}) == 6
    with pytest.raises(ValueError, match="object"):
        fingerprint(object())


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = "from emu_data.files import fingerprint; print(fingerprint({'set': {'b', 'a', 'c'}}))"
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint({"set": {"a", "b", "c"}})


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"key": ["a", "b"], "value": [1.5, None]})
    write_parquet(tmp_path / "one.parquet", frame)
    write_parquet(tmp_path / "two.parquet", frame.set_axis([7, 8]))
    assert file_sha256(tmp_path / "one.parquet") == file_sha256(tmp_path / "two.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "one.parquet"), frame)


def test_json_refuses_values_that_are_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "bad.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []
