"""`emu status`, `--dry-run` and `--upstream`: what they print, and the order in which assets are made."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import dagster as dg
import pytest
from rich.console import Console

from emu_dagster.declarations.staleness import StaleAsset
from tests.profiles import text_of

TOP = Path(__file__).parents[2]
CHAIN = ["raw_corpus", "alignment_model", "filter_ledger"]  # each is made from those before it


@pytest.fixture
def driver(project: Path) -> ModuleType:
    (project / "params.yaml").write_text(text_of("smoke"))
    shutil.copytree(TOP / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    from emu_dagster.commands import driver

    return driver


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class World:
    """Stands in for the graph's work: what is stale, what is on disk, and what was made, in order."""

    def __init__(self, driver: ModuleType, patch: pytest.MonkeyPatch, stale: list[str], there: list[str]) -> None:
        self.stale, self.there, self.made = list(stale), set(there), list[str]()
        patch.setattr(driver, "materialize_one", self.make)
        patch.setattr(driver, "stale_now", lambda instance: [StaleAsset(key, "changed") for key in self.stale])
        patch.setattr(driver, "output_exists", lambda layout, key: key in self.there)

    def make(self, key: str, instance: dg.DagsterInstance) -> None:
        self.made.append(key)
        self.there.add(key)
        self.stale = [other for other in self.stale if other != key]


def test_upstream_makes_what_is_stale_upstream_and_nothing_beside(driver, instance, monkeypatch):
    world = World(driver, monkeypatch, [*CHAIN, "autoencoder_study", "filtered_corpus"], [])
    driver.materialize_named(["filter_ledger"], upstream=True, instance=instance)
    assert world.made == CHAIN


def test_without_upstream_a_stale_input_is_used_as_it_is_and_a_missing_one_is_named(driver, instance, monkeypatch):
    world = World(driver, monkeypatch, ["raw_corpus"], ["raw_corpus"])
    driver.materialize_named(["alignment_model"], instance=instance)
    assert world.made == ["alignment_model"]
    world = World(driver, monkeypatch, CHAIN, ["raw_corpus"])
    with pytest.raises(ValueError, match="filter_ledger is made from alignment_model.*--upstream"):
        driver.materialize_named(["filter_ledger"], instance=instance)
    assert world.made == []


def test_named_assets_are_made_once_each_in_the_order_of_the_graph(driver, instance, monkeypatch):
    world = World(driver, monkeypatch, [], [])
    driver.materialize_named([*reversed(CHAIN), "raw_corpus"], instance=instance)
    assert world.made == CHAIN


def test_an_unknown_asset_is_refused_with_the_known_ones(driver):
    with pytest.raises(ValueError, match="'nix'; known: raw_corpus"):
        driver.in_order(["raw_corpus", "nix"])


def dry_run(monkeypatch: pytest.MonkeyPatch, stale: dict[str, str], keys: list[str], upstream: bool = False) -> str:
    from emu_dagster.commands import standing

    monkeypatch.setattr(standing, "stale_now", lambda instance: [StaleAsset(*pair) for pair in stale.items()])
    console = Console(file=io.StringIO(), width=200)
    standing.print_dry_run(keys, upstream, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_dry_run_says_what_would_be_made_and_why(driver, monkeypatch):
    stale = {"raw_corpus": "never materialised", "pretrained_low": "code has changed"}
    reported = dry_run(monkeypatch, stale, [])
    assert "raw_corpus: never materialised" in reported and "pretrained_low: code has changed" in reported
    assert "pretrained_mid: perhaps, after pretrained_low" in reported
    reported = dry_run(monkeypatch, stale, ["alignment_model"])
    assert "left as they are: raw_corpus" in reported and "pretrained" not in reported
    reported = dry_run(monkeypatch, stale, ["alignment_model"], upstream=True)
    assert reported.index("raw_corpus: never") < reported.index("alignment_model: ") and "pretrained" not in reported
    assert "nothing would be made" in dry_run(monkeypatch, {}, [])


def test_a_dry_run_names_what_the_command_then_makes(driver, instance, monkeypatch):
    stale = dict.fromkeys(CHAIN, "never materialised")
    reported = dry_run(monkeypatch, stale, ["filter_ledger"], upstream=True)
    world = World(driver, monkeypatch, list(stale), [])
    driver.materialize_named(["filter_ledger"], upstream=True, instance=instance)
    assert [line.split(":")[0] for line in reported.splitlines()][: len(CHAIN)] == world.made


def test_status_says_when_each_was_made_how_long_it_took_and_how_long_the_rest_will_take(driver, instance, monkeypatch):
    """Durations are those that Dagster recorded; none is invented."""
    from emu_dagster.commands import standing

    @dg.asset
    def above() -> None: ...

    @dg.asset(deps=[above])
    def below() -> None: ...

    toy = dg.Definitions(assets=[above, below])
    dg.materialize([above], instance=instance)
    monkeypatch.setattr(standing, "defs", toy)
    monkeypatch.setattr(driver, "defs", toy)
    monkeypatch.setattr(standing, "open_instance", lambda: instance)
    monkeypatch.setattr(standing, "stale_now", lambda instance: [StaleAsset("above", "code has changed")])
    first, second = standing.read_standing(instance)
    assert first.reason == "code has changed" and second.after == ("above",) and second.is_open
    assert first.made is not None and first.seconds is not None and 0 <= first.seconds < 60
    assert second.made is None and second.seconds is None
    console = Console(file=io.StringIO(), width=200)
    standing.print_status(console)
    assert isinstance(console.file, io.StringIO)
    reported = console.file.getvalue()
    assert "2 assets to make" in reported and "1 that were never timed" in reported and "never" in reported
    monkeypatch.setattr(standing, "stale_now", lambda instance: [])
    standing.print_status(console)
    assert "everything is up to date" in console.file.getvalue()
