"""Signals over shards: every row gets its values or its reason, and nothing is measured twice."""

import dataclasses
import itertools
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emu_data.cascade import StopRule, load_signals, measure_group, measure_shard, read_values
from emu_data.cascade_order import (
    expected_cost,
    find_order,
    measured_costs,
    order_signals,
    read_order,
    shares_reached,
)
from emu_data.costs import READING
from emu_data.files import file_sha256
from emu_data.ledger import Thresholds, decide
from emu_data.samples import Sample, make_key
from emu_data.shards import list_shards, read_samples, write_shard
from emu_data.signals import Columns, LazySample, Measure, Signal
from emu_data.signals.caption import CaptionSignal
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.looks import LooksSignal
from emu_data.signals.popularity import PopularitySignal
from emu_data.signals.safety import SafetySignal
from tests.shards import encode

SIGNALS = (GeometrySignal(), CaptionSignal(), LooksSignal())


@dataclass(frozen=True)
class PoisonSignal(Signal):
    """Mean brightness, and an end of the process if the caption says so."""

    how: str = "crash"

    name: ClassVar = "poison"
    columns: ClassVar = {"brightness": "Float64"}

    def describe(self) -> str:
        return "brightness"

    def load(self) -> Measure:
        if self.how == "load":
            raise ValueError("no weights here")
        return self._measure

    def _measure(self, batch: Sequence[LazySample]) -> Columns:
        if self.how == "always" or any("poison" in record.caption for record in batch):
            if self.how == "crash":
                os.abort()
            raise RuntimeError("cannot")
        return {"brightness": [float(np.asarray(record.image).mean()) for record in batch]}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two shards of four pictures; the first has a failed download, a corrupt picture and one that the tar lacks."""
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
    assert measure_group(raw, names_of(raw), SIGNALS, tmp_path / "signals", progress=False) == 8  # including unlisted/
    values = read_values(raw, names_of(raw), SIGNALS, tmp_path / "signals").set_index("key")
    assert len(values) == 11
    errors = values["error"].dropna()
    assert list(errors.index) == [make_key(0, 5), make_key(0, 6)]
    assert "the tar does not hold it" in errors[make_key(0, 5)]
    assert "corrupt" in errors[make_key(0, 6)]
    good = values[values["error"].isna() & (values["status"] == "success")]
    assert list(good["min_side"]) == [20] * 8
    assert list(good["aspect"]) == [(30 + i) / 20 for i in (0, 1, 2, 3)] * 2
    assert good[["detail", "num_words"]].notna().all(axis=None)
    assert values.drop(good.index)["detail"].isna().all()
    assert values.loc[make_key(0, 4), "error_message"] == "404"


def test_existing_files_are_kept_and_new_ones_have_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "signals"
    measure_group(raw, names_of(raw), SIGNALS, out, progress=False)
    files = {path: (file_sha256(path), path.stat().st_mtime_ns) for path in out.rglob("*.parquet")}
    assert measure_group(raw, names_of(raw), SIGNALS, out, progress=False) == 0
    victim = next(path for path in sorted(files) if path.parent.name.startswith("looks"))
    victim.unlink()
    assert measure_group(raw, names_of(raw), SIGNALS, out, progress=False) == 1
    for path, (digest, time) in files.items():
        assert file_sha256(path) == digest
        assert (path.stat().st_mtime_ns == time) == (path != victim)


@pytest.mark.parametrize("what", ["tar", "parquet", "tar of the same size"])
def test_only_a_shard_that_changed_is_measured_again(raw: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "signals"
    measure_group(raw, names_of(raw), SIGNALS, out, progress=False)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    tar, parquet = raw / "00001.tar", raw / "00001.parquet"
    given = tar.read_bytes(), parquet.read_bytes()
    if what == "tar":
        samples = [dataclasses.replace(s, image=encode(Image.new("RGB", (50, 60)))) for s in read_samples(tar)]
        write_shard(raw, 1, samples, pd.read_parquet(parquet))
    elif what == "parquet":
        rows = pd.read_parquet(parquet)
        write_shard(raw, 1, list(read_samples(tar))[:3], rows.head(3))
    else:
        damaged = bytearray(given[0])
        damaged[600:700] = bytes(100)  # in the first picture
        tar.write_bytes(damaged)
    with pytest.raises(ValueError, match="measured on other bytes"):
        read_values(raw, names_of(raw), SIGNALS, out)
    assert measure_group(raw, names_of(raw), SIGNALS, out, progress=False) == 4
    changed = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert {path.stem for path in changed} == {"00001"}
    values = read_values(raw, ["00001"], SIGNALS, out)
    if what == "tar":
        assert set(values["min_side"]) == {50}
    elif what == "parquet":
        assert len(values) == 3
    else:
        assert values["error"].notna().tolist() == [True, False, False, False]
    tar.unlink()  # removing a shard affects no other, and one that comes back is as it was
    parquet.unlink()
    assert measure_group(raw, ["00000"], SIGNALS, out, progress=False) == 0
    tar.write_bytes(given[0])
    parquet.write_bytes(given[1])
    measure_group(raw, names_of(raw), SIGNALS, out, progress=False)
    again = tmp_path / "again"
    measure_group(raw, names_of(raw), SIGNALS, again, progress=False)
    for path in again.rglob("*.parquet"):
        assert path.read_bytes() == (out / path.relative_to(again)).read_bytes()


def test_what_the_pilot_measured_does_not_hide_what_no_parquet_lists(raw: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(raw / "00001.parquet").head(3)
    rows.to_parquet(raw / "00001.parquet")
    out, rule = tmp_path / "signals", StopRule()
    find_order(raw, names_of(raw), SIGNALS, rule, out, tmp_path / "ms.json")
    measure_group(raw, names_of(raw), SIGNALS, out, progress=False)
    values = read_values(raw, names_of(raw), SIGNALS, out)
    assert (values["status"] == "unlisted").sum() == 1


def test_a_crash_loses_only_the_record_that_crashes(raw: Path, tmp_path: Path) -> None:
    signals = (GeometrySignal(), PoisonSignal())
    measure_group(raw, ["00001"], signals, tmp_path / "signals", progress=False)
    values = read_values(raw, ["00001"], signals, tmp_path / "signals").set_index("key")
    assert list(values["error"].str.contains("crashed").fillna(False)) == [False, True, False, False]
    assert list(values["brightness"].isna()) == [False, True, False, False]


@pytest.mark.parametrize(
    ("how", "reported"), [("load", "no weights here"), ("always", "a signal is at fault: .*cannot")]
)
def test_a_faulty_signal_ends_the_run(raw: Path, tmp_path: Path, how: str, reported: str) -> None:
    with pytest.raises(RuntimeError, match=reported):
        measure_group(raw, names_of(raw), (PoisonSignal(how),), tmp_path / "signals", progress=False)
    assert not list((tmp_path / "signals").rglob("*.parquet"))


def test_a_truncated_tar_loses_only_its_end(raw: Path, tmp_path: Path) -> None:
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


class Here:
    """A guard's `map` without a child, for tests in which nothing crashes."""

    def __init__(self, signals: Sequence[Signal], rule: StopRule):
        self.measure: Callable = load_signals(tuple(signals), rule)

    def map(self, items: Sequence, batch_size: int) -> list:
        return [result for i in range(0, len(items), batch_size) for result in self.measure(items[i : i + batch_size])]


POLICY = {"min_side": 40, "max_aspect": 1.5, "min_words": 2, "max_unsafe": 0.5, "min_popularity": 30}
GATES = (GeometrySignal(), CaptionSignal(), SafetySignal(detector="none"), PopularitySignal("likes"), LooksSignal())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of 120 pictures; each gate of POLICY rejects some, and several pictures are rejected by many."""
    rng = np.random.default_rng(1)
    samples, rows = [], []
    for index in range(120):
        key = make_key(0, index)
        image = Image.fromarray(rng.integers(0, 255, (*rng.integers(30, 90, 2), 3), np.uint8))
        caption = " ".join(["word"] * int(rng.integers(1, 4)))
        data = encode(image) if index % 20 else encode(image)[:150]
        meta = {"likes": float(rng.integers(0, 100))} | ({"punsafe": float(rng.random())} if index % 3 else {})
        samples.append(Sample(key, data, caption, meta))
        rows.append({"key": key, "caption": caption, "status": "success"})
    raw = tmp_path_factory.mktemp("mixed") / "raw"
    write_shard(raw, 0, samples, pd.DataFrame(rows))
    return raw


def run(raw: Path, out: Path, signals: Sequence[Signal], rule: StopRule) -> pd.DataFrame:
    measure_shard(raw, signals, out, rule, "00000", Here(signals, rule))  # pyrefly: ignore
    return read_values(raw, ["00000"], signals, out)


def kept(values: pd.DataFrame, policy: Thresholds = POLICY) -> set[str]:
    return set(decide(values, policy).query("kept")["key"])


def test_any_order_keeps_the_same_pictures(mixed: Path, tmp_path: Path) -> None:
    whole = run(mixed, tmp_path / "whole", GATES, StopRule())
    expected = kept(whole)
    assert 5 < len(expected) < 60
    num_unmeasured = set()
    for number, order in enumerate(itertools.permutations(GATES)):
        if number % 5:  # a fifth of the 120: each signal is first, and last, several times
            continue
        values = run(mixed, tmp_path / str(number), order, StopRule((POLICY,)))
        assert kept(values) == expected
        num_unmeasured.add((values["unmeasured"] != "").sum())
        for column in ("min_side", "num_words", "unsafe", "popularity", "detail"):
            there = values[column].notna()
            assert (values.loc[there, column] == whole.loc[there, column]).all()
        assert (values.loc[values["key"].isin(expected), "unmeasured"] == "").all()
    assert min(num_unmeasured) > 0


def test_rejected_pictures_are_not_decoded(mixed: Path, tmp_path: Path) -> None:
    values = run(mixed, tmp_path / "out", GATES, StopRule((POLICY,)))
    small = values[(values["min_side"] < 40).fillna(False)]
    assert len(small) > 20
    assert (small["unmeasured"] == "caption,looks,popularity,safety").all()
    assert small["error"].isna().all()  # including cut files, whose header still gives the size


def test_the_control_sample_is_measured_by_every_signal(mixed: Path, tmp_path: Path) -> None:
    rule = StopRule((POLICY,), control_share=0.3)
    values = run(mixed, tmp_path / "out", GATES, rule)
    control = values["key"].map(rule.is_control)
    assert 20 < control.sum() < 52
    assert (values.loc[control, "unmeasured"] == "").all()
    assert (values.loc[~control, "unmeasured"] != "").any()
    assert kept(values) == kept(run(mixed, tmp_path / "whole", GATES, StopRule()))
    assert [StopRule((POLICY,), 0.3, seed=1).is_control(key) for key in values["key"]] != control.tolist()


def test_a_looser_policy_measures_only_what_is_missing(mixed: Path, tmp_path: Path) -> None:
    loose = POLICY | {"min_side": 35, "min_words": 1}
    strict = run(mixed, tmp_path / "out", GATES, StopRule((POLICY,)))
    values = run(mixed, tmp_path / "out", GATES, StopRule((loose,)))
    assert kept(values, loose) == kept(run(mixed, tmp_path / "whole", GATES, StopRule()), loose)
    assert kept(values, loose) > kept(strict)
    known = strict["detail"].notna()
    assert known.any() and (values.loc[known, "detail"] == strict.loc[known, "detail"]).all()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    assert kept(run(mixed, tmp_path / "out", GATES, StopRule((POLICY,)))) == kept(strict)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_picture_is_measured_further_as_long_as_one_policy_keeps_it(mixed: Path, tmp_path: Path) -> None:
    other = POLICY | {"min_side": None, "min_words": None, "max_aspect": None}
    values = run(mixed, tmp_path / "out", GATES, StopRule((POLICY, other)))
    whole = run(mixed, tmp_path / "whole", GATES, StopRule())
    assert kept(values) == kept(whole)
    assert kept(values, other) == kept(whole, other)
    assert (values["unmeasured"] != "").any()


def test_order_is_cost_over_minus_log_of_the_pass_rate() -> None:
    seconds = {"geometry": 1e-5, "caption": 1e-5, "safety": 0.02, "popularity": 1e-6, "looks": 1e-3}
    seconds |= {"decode": 0.01, "embedding": 0.5}
    rates = {"geometry": 0.9, "caption": 0.5, "safety": 0.6, "popularity": 1.0, "looks": 0.95}
    # popularity is the cheapest, but rejects nothing; safety pays for the decoding, so looks costs no decoding
    assert order_signals(GATES, seconds, rates) == ("caption", "geometry", "safety", "looks", "popularity")
    assert order_signals(GATES[::-1], seconds, rates) == order_signals(GATES, seconds, rates)
    costly = order_signals(GATES, seconds | {"safety": 1.0}, rates)
    assert costly == ("caption", "geometry", "looks", "safety", "popularity")


def test_the_order_is_close_to_the_cheapest_if_gates_are_independent() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs = dict(zip([signal.name for signal in GATES], rng.uniform(1, 100, len(GATES)), strict=True))
        costs |= {"decode": 0.0, "embedding": 0.0}  # with a shared cost, the order is good but not the best
        rates = {signal.name: float(rng.uniform(0.5, 1)) for signal in GATES}
        order = order_signals(GATES, costs, rates)
        chosen = expected_cost(sorted(GATES, key=lambda signal: order.index(signal.name)), costs, rates)
        every = [expected_cost(some, costs, rates) for some in itertools.permutations(GATES)]
        assert min(every) <= chosen < 1.02 * min(every) < max(every)


def test_an_order_follows_from_the_rows_and_the_signals_and_measures_nothing_twice(mixed: Path, tmp_path: Path) -> None:
    out, rule, timings = tmp_path / "out", StopRule((POLICY,)), tmp_path / "cache" / "ms.json"
    found = find_order(mixed, ["00000"], GATES, rule, out, timings)
    assert found.order[-1] == "looks"
    assert found.pass_rates["looks"] == 1 and 0.3 < found.pass_rates["geometry"] < 0.9
    assert found.costs["geometry"] == GATES[0].cost() and measured_costs(timings, GATES)["decode"].core > 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*.parquet")}
    shutil.rmtree(timings.parent)  # a cache, which may disappear at any time
    looser = StopRule((POLICY | {"min_side": None},))
    other = find_order(mixed, ["00000"], GATES, looser, out, timings)
    assert other.pass_rates["geometry"] > found.pass_rates["geometry"]
    assert find_order(mixed, ["00000"], GATES[::-1], rule, out, timings) == found == read_order(out)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert measured_costs(timings, GATES) == {}  # nothing was measured again
    assert [signal.name for signal in found.arrange(GATES[::-1])] == list(found.order)


def test_the_share_that_reaches_a_signal_is_what_a_run_asks(mixed: Path, tmp_path: Path) -> None:
    rule = StopRule((POLICY,))
    found = find_order(mixed, ["00000"], GATES, rule, tmp_path / "pilot", tmp_path / "costs.json")
    whole = read_values(mixed, ["00000"], GATES, tmp_path / "pilot")
    values = run(mixed, tmp_path / "out", found.arrange(GATES), rule)
    readable = values[whole["error"].isna()]
    for name in found.order:
        asked = ~readable["unmeasured"].str.split(",").map(lambda names, name=name: name in names)
        assert asked.mean() == pytest.approx(found.reached[name])
    shares = shares_reached(found, GATES, 0.1)
    first = next(signal.name for signal in found.arrange(GATES) if signal.needs == "pixels")
    assert shares["decode"] == pytest.approx(0.1 + 0.9 * found.reached[first]) and "embedding" not in shares
    costs = measured_costs(tmp_path / "costs.json", GATES)
    assert costs.keys() == shares.keys()
    assert {costs[name].num_pictures for name in ("geometry", "caption", READING)} <= {120 - 64, 120}  # warm ones
