"""What an asset reads makes it stale, and nothing else does; it cannot read what it has not declared."""

import ast
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from emu_dagster.declarations import closures
from emu_dagster.declarations.closures import SHARED, WHOLE, hash_code, module_path, reached_parts
from emu_dagster.declarations.declared import DECLARATIONS, EVERY_REPORT, Declaration
from emu_dagster.declarations.given import give_params, values_of
from emu_dagster.resources.measured import Measured
from emu_steps.layout import Layout, UndeclaredRead
from emu_steps.params import Params
from tests.profiles import params_of

TOP = Path(__file__).parents[2]
TRAININGS = ["autoencoder", "pretrained_low", "pretrained_mid", "pretrained_full", "quality_tuned"]


@pytest.fixture(scope="module")
def declarations() -> dict[str, Declaration]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMU_ROOT", str(TOP))
        import emu_dagster.definitions  # noqa: F401
    return DECLARATIONS


@pytest.fixture(scope="module")
def params() -> Params:
    return params_of("emoji")


def leaves(value: Any, path: str = "") -> list[str]:
    """Return the dotted names of all entries of params.yaml, including defaults; a list or a mapping is one entry."""
    if not isinstance(value, BaseModel):
        return [path]
    return [leaf for name in type(value).model_fields for leaf in leaves(getattr(value, name), f"{path}.{name}")]


def other(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}x"
        case list() | tuple():
            return [*value, "x"]
        case dict():
            return {**value, "x": "x"}
    return "x"


def changed(section: BaseModel, parts: list[str]) -> Any:
    """Return a copy in which one entry has another value, valid or not."""
    value = getattr(section, parts[0])
    return section.model_copy(update={parts[0]: changed(value, parts[1:]) if parts[1:] else other(value)})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # for values that no file could hold
def test_every_leaf_of_params_makes_stale_exactly_what_declares_it(declarations, params):
    layout = Layout(TOP)
    before = {key: d.code_version(params, layout) for key, d in declarations.items()}
    names = [leaf.removeprefix(".") for leaf in leaves(params)]
    assert len(names) > 150
    for name in names:
        new = changed(params, name.split("."))
        stale = {key for key, d in declarations.items() if d.code_version(new, layout) != before[key]}
        declared = {key for key, d in declarations.items() if any(f"{name}.".startswith(f"{p}.") for p in d.params)}
        assert stale == declared, name
        assert declared or name.startswith(("engine.", "launch.")), f"nobody reads {name}"


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("filter_ledger.signals.concepts", "filter_ledger"),
        ("filter_ledger.signals.alignment_weights", "filter_ledger"),
        ("filter_ledger.signals.alignment_weights", "alignment_model"),
        ("pretrained_mid.gates", "filter_ledger"),
        ("evaluation_images.fixed_prompts", "quality_tuned"),
        ("evaluation_images.guidance_scale", "pretrained_full"),
        ("quality_tuned.resolution", "evaluation_images"),
        ("quality_tuned.resolution", "automatic_report"),
        ("toy", "appeal_report"),
    ],
)
def test_an_asset_that_reads_a_part_of_another_section_declares_it(declarations, params, name, reader):
    layout = Layout(TOP)
    before, new = (declarations[reader].code_version(p, layout) for p in (params, changed(params, name.split("."))))
    assert before != new


def test_declared_names_exist(declarations, params):
    for key, declaration in declarations.items():
        values_of(params, [*declaration.params, *declaration.how, *declaration.files])
        assert {*declaration.reads, key} - {EVERY_REPORT} <= declarations.keys()
        assert set(declaration.inputs(params, Layout(TOP))) <= declarations.keys() - {key}


def test_undeclared_params_cannot_be_read(params):
    given = give_params(params, "filter_ledger", ["filter_ledger", "pretrained_low.gates"])
    assert given.filter_ledger.policy.min_side == params.filter_ledger.policy.min_side
    assert given.pretrained_low.gates == params.pretrained_low.gates
    for read in (lambda: given.filtered_corpus, lambda: given.pretrained_low.seed, lambda: given.profile):
        with pytest.raises(UndeclaredRead, match="filter_ledger reads .* add it to `params`"):
            read()


def test_undeclared_data_cannot_be_found():
    layout = Layout(TOP, frozenset(["raw_corpus", "quality_tuned"]))
    assert layout.raw == TOP / "data/raw" and layout.model("quality_tuned").name == "quality_tuned"
    for read in (lambda: layout.curated, lambda: layout.model("autoencoder"), lambda: layout.report("appeal_report")):
        with pytest.raises(UndeclaredRead, match="add it to `reads`"):
            read()


def test_every_path_of_the_layout_belongs_to_the_asset_that_writes_it(declarations):
    """Every path that a Layout gives is in an output of the asset whose declaration allows it."""
    for key, declaration in declarations.items():
        layout = Layout(TOP, frozenset([key]))
        for name in [n for n, member in vars(Layout).items() if isinstance(member, property)]:
            try:
                path = getattr(layout, name)
            except UndeclaredRead:
                continue
            if name not in ("data", "cache", "index") and not name.startswith(("votes", "states", "withdrawn")):
                assert path.relative_to(TOP).as_posix() in declaration.outs, (key, name)


def test_a_provided_file_counts_by_its_bytes(declarations, params, tmp_path):
    head = tmp_path / "head.safetensors"
    head.write_bytes(b"one")
    signals = params.filter_ledger.signals.model_copy(update={"aesthetics_head": "head.safetensors"})
    section = params.filter_ledger.model_copy(update={"signals": signals})
    given, layout = params.model_copy(update={"filter_ledger": section}), Layout(tmp_path)
    declaration = declarations["filter_ledger"]
    assert declaration.brought(given, layout) == [head]
    one = declaration.code_version(given, layout)
    assert declaration.code_version(given, layout) == one
    head.write_bytes(b"another")
    assert declaration.code_version(given, layout) != one
    assert Measured(layout.root).see(head)[1]["md5"] == "b32d73e56ec99bc5ec8f83871cde708a"  # md5 of "another"


@pytest.mark.parametrize(
    ("asset", "path"), [("filter_ledger", ("signals", "alignment_weights")), ("faithfulness_judge", ("weights",))]
)
def test_a_file_of_a_named_model_counts_by_its_bytes(declarations, params, tmp_path, asset, path):
    """NAME@FILE and NAME@TAG@FILE: the same name with other bytes is another input."""
    file = tmp_path / "weights" / "b.pt"
    file.parent.mkdir()
    for source in ("ViT-B-32-quickgelu@weights/b.pt", "ViT-B-32@openai@weights/b.pt"):
        section = value = getattr(params, asset)
        for part in path[:-1]:
            value = getattr(value, part)
        value = value.model_copy(update={path[-1]: source})
        section = value if len(path) == 1 else section.model_copy(update={path[0]: value})
        given, layout = params.model_copy(update={asset: section}), Layout(tmp_path)
        versions = set()
        for content in (b"one", b"two"):
            file.write_bytes(content)
            assert declarations[asset].brought(given, layout) == [file]
            versions.add(declarations[asset].code_version(given, layout))
        assert len(versions) == 2


def test_a_checkpoint_of_the_graph_is_an_input_asset(declarations, params):
    assert declarations["quality_tuned"].inputs(params, Layout(TOP))[0] == "pretrained_full"


# --- code ---


def modules() -> list[str]:
    files = [file for package in closures.PACKAGES for file in sorted((TOP / package).rglob("*.py"))]
    names = [file.relative_to(TOP).with_suffix("").as_posix().replace("/", ".") for file in files]
    return [name.removesuffix(".__init__") for name in names]


def constants(source: str) -> list[tuple[ast.Constant, str]]:
    """Return the plain numbers and strings on one line, without docstrings and parts of f-strings, each with the
    top-level name that it belongs to ("" if none)."""
    tree, found = ast.parse(source), []
    for statement in tree.body:
        owner = getattr(statement, "name", "")
        targets = [n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        owner = owner or (targets[0] if isinstance(statement, (ast.Assign, ast.AnnAssign)) else "")
        strings = [node for node in ast.walk(statement) if isinstance(node, ast.JoinedStr)]
        docs = [node for node in ast.walk(statement) if isinstance(node, ast.Expr)]
        left_out = {id(part) for node in strings for part in ast.walk(node)} | {id(node.value) for node in docs}
        for node in ast.walk(statement):
            if not isinstance(node, ast.Constant) or id(node) in left_out or node.lineno != node.end_lineno:
                continue
            if type(node.value) in (int, float) or (isinstance(node.value, str) and node.value.isidentifier()):
                found.append((node, owner))
    return found


def with_constant_changed(source: str, node: ast.Constant) -> str:
    lines = source.encode().split(b"\n")
    line, value = lines[node.lineno - 1], node.value
    new = repr(f"{value}x") if isinstance(value, str) else repr(value + 1)  # type: ignore[operator]
    lines[node.lineno - 1] = line[: node.col_offset] + new.encode() + line[node.end_col_offset :]
    return b"\n".join(lines).decode()


class Copy:
    """A copy of our packages, for which closures are computed; modules that were edited are read again."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for package in closures.PACKAGES:
            shutil.copytree(TOP / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
        self.root, self.known = root, {}
        monkeypatch.setattr(closures, "TOP", root)
        for name in ("_parse", "_definitions", "_next_parts", "_hash_part"):
            monkeypatch.setattr(closures, name, partial(self._remember, getattr(closures, name).__wrapped__))

    def _remember(self, function: Callable, *arguments: str) -> Any:
        if (function, arguments) not in self.known:
            self.known[function, arguments] = function(*arguments)
        return self.known[function, arguments]

    def write(self, path: Path, text: str) -> None:
        """Edit a file, and forget what was known of the modules of its folder."""
        path.write_text(text)
        folder = path.parent.parent if path.parent.name == "templates" else path.parent
        module = folder.relative_to(self.root).as_posix().replace("/", ".")
        self.known = {key: value for key, value in self.known.items() if not key[1][0].startswith(module)}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    return Copy(tmp_path, monkeypatch)


def versions(declarations: dict[str, Declaration]) -> dict[str, str]:
    return {key: hash_code(declaration.function) for key, declaration in declarations.items()}


@pytest.mark.slow
def test_a_changed_constant_makes_stale_exactly_what_reaches_it(declarations, copy):
    """A constant of 50 modules of ours, both drawn at random."""
    rng = random.Random(0)
    reached = {key: reached_parts(declaration.function) for key, declaration in declarations.items()}
    before, num_reached = versions(declarations), 0
    for module in rng.sample(list(modules()), 50):
        path = module_path(module)
        assert path is not None
        source = path.read_text()
        found = [(node, owner) for node, owner in constants(source) if owner or module.partition(".")[0] not in SHARED]
        if not found or module.startswith("emu_dagster.defs"):
            continue
        node, owner = rng.choice(found)
        copy.write(path, with_constant_changed(source, node))
        now = versions(declarations)
        copy.write(path, source)
        expected = {key for key, parts in reached.items() if {(module, WHOLE), (module, owner)} & parts}
        assert {key for key in declarations if now[key] != before[key]} == expected, f"{module}, line {node.lineno}"
        num_reached += bool(expected)
    assert num_reached > 20


def test_comments_and_docstrings_make_nothing_stale(declarations, copy):
    before = versions(declarations)
    for module in modules():
        path = module_path(module)
        assert path is not None
        text = path.read_text().replace('"""\n', ' And more."""\n', 1)
        copy.write(path, f"# a comment\n{text}\n\n\n# another\n")
    assert "And more." in (copy.root / "emu_models" / "training" / "loop.py").read_text()
    assert versions(declarations) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "readers"),
    [
        ("emu_data/samples.py", "MAX_PIXELS", "MAX_PIXELS_OF_A_PICTURE", ["raw_corpus", "filter_ledger", *TRAININGS]),
        ("emu_steps/corpora.py", '"key": pd', '"keys": pd', ["raw_corpus"]),
        ("emu_dagster/training/child.py", "return STOPPED", "return 1 + STOPPED", TRAININGS),
        ("emu_dagster/served_model.py", '"PNG"', '"JPEG"', ["registered_model"]),
        ("emu_reports/templates/style.css", "body", "html", ["filtered_corpus", "appeal_report"]),
    ],
)
def test_code_that_is_reached_without_an_import_or_far_away_counts(declarations, copy, file, old, new, readers):
    before = versions(declarations)
    path = copy.root / file
    text = path.read_text()
    assert old in text
    copy.write(path, text.replace(old, new))
    now = versions(declarations)
    assert {key for key in readers if now[key] == before[key]} == set()


def test_modules_that_run_are_among_those_found(declarations):
    """The modules that a training's child and the filters really import are among those that were found by reading."""
    script = "import sys, {}; print(*(m for m in sys.modules if m.startswith('emu_')))"
    for key, module in (("pretrained_low", "emu_models.latent.trainings"), ("filter_ledger", "emu_data.cascade_order")):
        command = [sys.executable, "-c", script.format(module)]
        loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=TOP).stdout.split()
        reached = {module for module, _ in reached_parts(declarations[key].function)}
        missing = {name for name in loaded if name not in reached and not closures._keeps_books(name)}
        assert not missing, key
