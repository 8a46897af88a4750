"""What is listed as stale, on a toy graph of this shape: one input, partitions of it, one asset of all."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from emu_dagster.defs.corpus import list_shard_groups
from emu_dagster.driver import output_exists
from emu_dagster.filtering import publish_filtered
from emu_dagster.layout import Layout
from emu_dagster.params import read_params
from emu_dagster.staleness import MISSING_OUTPUT, NEVER_MADE, stale_assets

ROOT = Path(__file__).parents[2]
groups = dg.DynamicPartitionsDefinition(name="groups")


class Toy:
    """Data versions that the assets report, settable from outside, and what is on the disk."""

    def __init__(self) -> None:
        self.raw, self.ledger, self.missing = "raw-1", {"a": "a-1", "b": "b-1"}, set()

    def definitions(self, code: str = "1") -> dg.Definitions:
        @dg.asset(code_version="1")
        def raw() -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion(self.raw))

        @dg.asset(deps=[raw], partitions_def=groups, code_version="1")
        def ledger(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion(self.ledger[context.partition_key]))

        @dg.asset(deps=[ledger, raw], code_version=code)
        def filtered() -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion("filtered"))

        @dg.asset(deps=[filtered], code_version="1")
        def report() -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion("report"))

        return dg.Definitions(assets=[raw, ledger, filtered, report])

    def stale(self, instance: dg.DagsterInstance, code: str = "1") -> list[tuple[str, str | None, str]]:
        found = stale_assets(
            self.definitions(code),
            instance,
            lambda key, partition: (key.path[-1], partition) not in self.missing,
        )
        return [(item.key.to_user_string(), item.partition, item.reason) for item in found]

    def make(self, instance: dg.DagsterInstance, key: str, partition: str | None, code: str = "1") -> None:
        assets = [asset for asset in self.definitions(code).assets or [] if isinstance(asset, dg.AssetsDefinition)]
        dg.materialize(assets, selection=[key], instance=instance, partition_key=partition)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def toy(instance: dg.DagsterInstance) -> Toy:
    """The toy graph, everything made."""
    toy = Toy()
    instance.add_dynamic_partitions("groups", ["a", "b"])
    for key, partition in (
        ("raw", None),
        ("ledger", "a"),
        ("ledger", "b"),
        ("filtered", None),
        ("report", None),
    ):
        toy.make(instance, key, partition)
    return toy


def test_nothing_made_lists_everything_in_order(instance: dg.DagsterInstance) -> None:
    toy = Toy()
    names = [name for name, _, reason in toy.stale(instance) if reason == NEVER_MADE]
    assert names == ["raw", "ledger", "filtered", "report"]
    toy.make(instance, "raw", None)
    instance.add_dynamic_partitions("groups", ["a", "b"])
    assert [(name, partition) for name, partition, _ in toy.stale(instance)] == [
        ("ledger", "a"),
        ("ledger", "b"),
        ("filtered", None),
        ("report", None),
    ]


def test_everything_made_lists_nothing(toy: Toy, instance: dg.DagsterInstance) -> None:
    assert toy.stale(instance) == []


def test_missing_output_is_listed(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.missing = {("ledger", "b"), ("report", None)}
    assert toy.stale(instance) == [("ledger", "b", MISSING_OUTPUT), ("report", None, MISSING_OUTPUT)]


def test_changed_code_version_is_listed_for_its_asset_alone(toy: Toy, instance: dg.DagsterInstance) -> None:
    assert toy.stale(instance, code="2") == [("filtered", None, "has a new code version")]
    toy.make(instance, "filtered", None, code="2")  # the same data version again: nothing below is stale
    assert toy.stale(instance, code="2") == []


def test_changed_input_is_listed_for_what_reads_it(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.raw = "raw-2"
    toy.make(instance, "raw", None)
    reason = "has a new dependency data version (raw)"
    assert toy.stale(instance) == [
        ("ledger", "a", reason),
        ("ledger", "b", reason),
        ("filtered", None, reason),
    ]
    for key, partition in (("ledger", "a"), ("ledger", "b"), ("filtered", None)):
        toy.make(instance, key, partition)
    assert toy.stale(instance) == []


def test_input_made_again_with_the_same_bytes_is_nothing(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.make(instance, "raw", None)
    toy.make(instance, "ledger", "a")
    assert toy.stale(instance) == []


def test_new_and_changed_partitions_reach_what_reads_all(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.ledger["b"] = "b-2"
    toy.make(instance, "ledger", "b")
    assert toy.stale(instance) == [("filtered", None, "has a new dependency data version (ledger)")]
    toy.make(instance, "filtered", None)
    instance.add_dynamic_partitions("groups", ["c"])
    toy.ledger["c"] = "c-1"
    assert toy.stale(instance) == [("ledger", "c", NEVER_MADE)]
    toy.make(instance, "ledger", "c")
    assert [item[0] for item in toy.stale(instance)] == ["filtered"]


def test_a_partition_of_the_ledger_exists_if_all_its_shards_have_one(project: Path):
    layout, params = Layout(project), read_params(ROOT / "params.yaml")
    size = params.filter_ledger.shards_per_group
    for folder in (layout.raw, layout.signals, layout.ledger):
        folder.mkdir(parents=True)
    for number in range(size + 1):
        (layout.raw / f"{number:05d}.tar").touch()
        (layout.ledger / f"{number:05d}.parquet").touch()
    groups = list_shard_groups(layout, params)
    assert [output_exists(layout, params, "filter_ledger", group) for group in groups] == [True, True]
    (layout.ledger / f"{size:05d}.parquet").unlink()
    assert [output_exists(layout, params, "filter_ledger", group) for group in groups] == [True, False]
    with pytest.raises(ValueError, match=rf"no ledger of 1 shards, first \['{size:05d}'\]"):
        publish_filtered(layout, params)
    assert not layout.filtered.exists()
