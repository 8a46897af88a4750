"""Signals over shards: every row gets its values or its reason, and nothing is measured twice."""

import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emu_data.cascade import measure_group, read_values
from emu_data.files import file_sha256
from emu_data.records import Decoded, Sample, make_key
from emu_data.shards import list_shards, write_shard
from emu_data.signals import Columns, Measure, Signal
from emu_data.signals.caption import CaptionSignal
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.phash import PhashSignal

SIGNALS = (GeometrySignal(), CaptionSignal(), PhashSignal())


@dataclass(frozen=True)
class PoisonSignal(Signal):
    """Mean brightness, and an end of the process where the caption says so."""

    how: str = "crash"

    name: ClassVar = "poison"
    columns: ClassVar = {"brightness": "Float64"}

    def load(self) -> Measure:
        if self.how == "load":
            raise ValueError("no weights here")
        return self._measure

    def _measure(self, batch: Sequence[Decoded]) -> Columns:
        if self.how == "always" or any("poison" in record.caption for record in batch):
            if self.how == "crash":
                os.abort()
            raise RuntimeError("cannot")
        return {"brightness": [float(np.asarray(record.image).mean()) for record in batch]}


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two shards of four pictures; the first has a failed download, a corrupt picture and one lost from the tar."""
    rng = np.random.default_rng(0)
    for shard in range(2):
        samples, rows = [], []
        for index in range(4):
            key = make_key(shard, index)
            image = Image.fromarray(rng.integers(0, 255, (20, 30 + index, 3), np.uint8))
            samples.append(Sample(key, encode(image), "poison" if index == 1 else f"picture {index}", {}))
            rows.append({"key": key, "caption": samples[-1].caption, "status": "success", "url": f"u{key}"})
        if shard == 0:
            rows += [
                {"key": make_key(0, 4), "caption": "gone", "status": "failed_to_download", "error_message": "404"},
                {"key": make_key(0, 5), "caption": "lost", "status": "success"},
                {"key": make_key(0, 6), "caption": "broken", "status": "success"},
            ]
            samples.append(Sample(make_key(0, 6), samples[0].image[:200], "broken", {}))
        write_shard(tmp_path / "raw", shard, samples, pd.DataFrame(rows))
    return tmp_path / "raw"


def names_of(raw: Path) -> list[str]:
    return [tar.stem for tar in list_shards(raw)]


def test_every_row_has_values_or_a_reason(raw: Path, tmp_path: Path) -> None:
    assert measure_group(raw, names_of(raw), SIGNALS, tmp_path / "signals", progress=False) == 6
    values = read_values(raw, names_of(raw), SIGNALS, tmp_path / "signals").set_index("key")
    assert len(values) == 11
    errors = values["error"].dropna()
    assert list(errors.index) == [make_key(0, 5), make_key(0, 6)]
    assert "the tar does not hold it" in errors[make_key(0, 5)]
    assert "corrupt" in errors[make_key(0, 6)]
    good = values[values["error"].isna() & (values["status"] == "success")]
    assert list(good["min_side"]) == [20] * 8
    assert list(good["aspect"]) == [(30 + i) / 20 for i in (0, 1, 2, 3)] * 2
    assert good[["phash", "num_words"]].notna().all(axis=None)
    assert values.drop(good.index)["phash"].isna().all()
    assert values.loc[make_key(0, 4), "error_message"] == "404"


def test_present_files_are_kept_and_new_ones_are_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "signals"
    measure_group(raw, names_of(raw), SIGNALS, out, progress=False)
    files = {path: (file_sha256(path), path.stat().st_mtime_ns) for path in out.rglob("*.parquet")}
    assert measure_group(raw, names_of(raw), SIGNALS, out, progress=False) == 0
    victim = next(iter(files))
    victim.unlink()
    assert measure_group(raw, names_of(raw), SIGNALS, out, progress=False) == 1
    for path, (digest, time) in files.items():
        assert file_sha256(path) == digest
        assert (path.stat().st_mtime_ns == time) == (path != victim)


def test_crash_costs_the_record_that_crashes(raw: Path, tmp_path: Path) -> None:
    signals = (GeometrySignal(), PoisonSignal())
    measure_group(raw, ["00001"], signals, tmp_path / "signals", progress=False)
    values = read_values(raw, ["00001"], signals, tmp_path / "signals").set_index("key")
    assert list(values["error"].str.contains("crashed").fillna(False)) == [False, True, False, False]
    assert list(values["brightness"].isna()) == [False, True, False, False]


@pytest.mark.parametrize(("how", "told"), [("load", "no weights here"), ("always", "a signal is at fault: .*cannot")])
def test_signal_at_fault_ends_the_run(raw: Path, tmp_path: Path, how: str, told: str) -> None:
    with pytest.raises(RuntimeError, match=told):
        measure_group(raw, names_of(raw), (PoisonSignal(how),), tmp_path / "signals", progress=False)
    assert not list((tmp_path / "signals").rglob("*.parquet"))


def test_truncated_tar_costs_its_tail(raw: Path, tmp_path: Path) -> None:
    tar = raw / "00001.tar"
    with tarfile.open(tar) as opened:
        third = opened.getmember(f"{make_key(1, 2)}.png")
    tar.write_bytes(tar.read_bytes()[: third.offset_data + 100])
    measure_group(raw, ["00001"], SIGNALS, tmp_path / "signals", progress=False)
    values = read_values(raw, ["00001"], SIGNALS, tmp_path / "signals").set_index("key")
    assert list(values["error"].isna()) == [True, True, False, False]
    assert "truncated" in str(values.loc[make_key(1, 2), "error"])


def test_values_need_their_files_and_unique_keys(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="measure the shard first"):
        read_values(raw, names_of(raw), SIGNALS, tmp_path / "signals")
    for suffix in (".tar", ".parquet"):
        (raw / f"00002{suffix}").write_bytes((raw / f"00001{suffix}").read_bytes())
    measure_group(raw, names_of(raw), SIGNALS, tmp_path / "signals", progress=False)
    with pytest.raises(ValueError, match="more than once"):
        read_values(raw, names_of(raw), SIGNALS, tmp_path / "signals")
