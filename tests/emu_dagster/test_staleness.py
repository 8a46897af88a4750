"""What is listed as stale, in a toy graph: one input, its values, one asset of both, a report."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from emu_dagster.commands.driver import output_exists
from emu_dagster.declarations.staleness import MISSING_OUTPUT, NEVER_MADE, stale_assets
from emu_steps.filtering import publish_filtered
from emu_steps.layout import Layout
from tests.profiles import params_of

ROOT = Path(__file__).parents[2]


class Toy:
    """Data versions that the assets report, which tests can set, and what is on disk."""

    def __init__(self) -> None:
        self.raw, self.ledger, self.missing = "raw-1", "ledger-1", set()

    def definitions(self, code: str = "1") -> dg.Definitions:
        @dg.asset(code_version="1")
        def raw() -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion(self.raw))

        @dg.asset(deps=[raw], code_version="1")
        def ledger() -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion(self.ledger))

        @dg.asset(deps=[ledger, raw], code_version=code)
        def filtered() -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion("filtered"))

        @dg.asset(deps=[filtered], code_version="1")
        def report() -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion("report"))

        return dg.Definitions(assets=[raw, ledger, filtered, report])

    def stale(self, instance: dg.DagsterInstance, code: str = "1") -> list[tuple[str, str]]:
        found = stale_assets(self.definitions(code), instance, lambda key: key not in self.missing)
        return [(item.key, item.reason) for item in found]

    def make(self, instance: dg.DagsterInstance, key: str, code: str = "1") -> None:
        assets = [asset for asset in self.definitions(code).assets or [] if isinstance(asset, dg.AssetsDefinition)]
        dg.materialize(assets, selection=[key], instance=instance)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def toy(instance: dg.DagsterInstance) -> Toy:
    """The toy graph, with everything made."""
    toy = Toy()
    for key in ("raw", "ledger", "filtered", "report"):
        toy.make(instance, key)
    return toy


def test_nothing_made_lists_everything_in_order(instance: dg.DagsterInstance) -> None:
    names = [name for name, reason in Toy().stale(instance) if reason == NEVER_MADE]
    assert names == ["raw", "ledger", "filtered", "report"]


def test_everything_made_lists_nothing(toy: Toy, instance: dg.DagsterInstance) -> None:
    assert toy.stale(instance) == []


def test_missing_output_is_listed(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.missing = {"ledger", "report"}
    assert toy.stale(instance) == [("ledger", MISSING_OUTPUT), ("report", MISSING_OUTPUT)]


def test_changed_code_version_is_listed_for_its_asset_alone(toy: Toy, instance: dg.DagsterInstance) -> None:
    assert toy.stale(instance, code="2") == [("filtered", "has a new code version")]
    toy.make(instance, "filtered", code="2")  # the same data version again: nothing downstream is stale
    assert toy.stale(instance, code="2") == []


def test_changed_input_is_listed_for_what_reads_it(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.raw = "raw-2"
    toy.make(instance, "raw")
    reason = "has a new dependency data version (raw)"
    assert toy.stale(instance) == [("ledger", reason), ("filtered", reason)]
    for key in ("ledger", "filtered"):
        toy.make(instance, key)
    assert toy.stale(instance) == []


def test_input_made_again_with_the_same_bytes_makes_nothing_stale(toy: Toy, instance: dg.DagsterInstance) -> None:
    toy.make(instance, "raw")
    toy.make(instance, "ledger")
    assert toy.stale(instance) == []


def test_the_ledger_exists_if_every_shard_has_its_part(project: Path):
    layout = Layout(project)
    for folder in (layout.raw, layout.signals, layout.ledger):
        folder.mkdir(parents=True)
    for number in range(3):
        (layout.raw / f"{number:05d}.tar").touch()
        (layout.ledger / f"{number:05d}.parquet").touch()
    assert output_exists(layout, "filter_ledger")
    (layout.ledger / "00001.parquet").unlink()
    assert not output_exists(layout, "filter_ledger")
    with pytest.raises(ValueError, match="1 shards have no ledger, the first are 00001"):
        publish_filtered(layout, params_of("emoji"), {})
    assert not layout.filtered.exists()
