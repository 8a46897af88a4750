"""What code an asset's result depends on, found by following imports, and one digest of it.

A module of emu_data, emu_models or emu_reports counts as a whole, and so does what it imports, at its top or inside a
function. A module of emu_steps or emu_dagster serves several assets: only those of its functions, classes and constants
that are used count, and what these import. Three things are reached without an import statement and are followed too: a
module whose dotted name is in a string (one that a child process runs), a code file next to a module that has the
file's name in a string, and a folder `templates/` next to a module.

The syntax tree without docstrings is hashed: a changed comment, docstring or layout of the code does not change the
digest, a changed constant does.
"""

import ast
import hashlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import emu_dagster

TOP = Path(emu_dagster.__file__).parent.parent
PACKAGES = ("emu_data", "emu_models", "emu_reports", "emu_steps", "emu_dagster")
SHARED = ("emu_steps", "emu_dagster")  # only the used definitions of these packages' modules count
# Not followed: what these give to an asset is hashed as a value (params) or by DVC (bytes of inputs), or they only keep
# records and do not affect a result.
BOOKKEEPING = ("emu_dagster.declarations", "emu_dagster.resources", "emu_steps.layout", "emu_steps.params")
WHOLE = ""  # in place of a definition's name: all of the module
Part = tuple[str, str]  # module, and a definition in it or WHOLE


def hash_code(function: Callable) -> str:
    """Return the SHA-256 over what `function`, defined at the top level of a module of ours, reaches, as 64 hexadecimal
    digits.
    """
    return _hash_parts(reached_parts(function))


def hash_module(module: str) -> str:
    """Return the SHA-256 over everything that a whole module, given by its dotted name, reaches. It is not imported."""
    return _hash_parts(_reached_from((module, WHOLE)))


def _hash_parts(parts: set[Part]) -> str:
    digest = hashlib.sha256()
    for module, name in sorted(parts):
        digest.update(f"{module} {name} {_hash_part(module, name)}".encode())
    return digest.hexdigest()


def reached_parts(function: Callable) -> set[Part]:
    """Return the modules, and the definitions in modules of SHARED, that `function` reaches, including itself."""
    return _reached_from((function.__module__, inspect.unwrap(function).__name__))


def _reached_from(start: Part) -> set[Part]:
    waiting = {start}
    found: set[Part] = set()
    while waiting:
        part = waiting.pop()
        if part in found or _keeps_books(part[0]):
            continue
        found.add(part)
        waiting.update(_next_parts(*part))
    return found


def module_path(module: str) -> Path | None:
    """Return the file of a module of ours, given by its dotted name; None if there is no such module."""
    if module.partition(".")[0] not in PACKAGES or not all(part.isidentifier() for part in module.split(".")):
        return None
    path = TOP.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _keeps_books(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in BOOKKEEPING)


@cache
def _next_parts(module: str, name: str) -> frozenset[Part]:
    """Return what a part of a module uses: other definitions of the same module, and what it imports."""
    found: set[Part] = set()
    if "." in module:  # importing a.b runs a/__init__.py first
        found.add((module.rpartition(".")[0], WHOLE))
    if name == WHOLE:
        found.update(_imported(_parse(module), module))
        return frozenset(found)
    definitions, imports = _definitions(module)
    found.update(_imported(definitions[name], module))
    for used in _used_names(definitions[name]):
        if used in definitions and used != name:
            found.add((module, used))
        elif used in imports:
            found.update(imports[used])
    return frozenset(found)


@cache
def _definitions(module: str) -> tuple[dict[str, ast.stmt], dict[str, set[Part]]]:
    """Return, for a module's top level, name -> the statement that defines it, and imported name -> what it stands
    for.
    """
    definitions: dict[str, ast.stmt] = {}
    imports: dict[str, set[Part]] = {}
    for statement in _parse(module).body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            definitions[statement.name] = statement
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                single = ast.copy_location(_only(statement, alias), statement)
                imports[(alias.asname or alias.name).partition(".")[0]] = set(_imported(single, module))
        else:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    definitions[node.id] = statement
    return definitions, imports


def _only(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> ast.stmt:
    if isinstance(statement, ast.Import):
        return ast.Import([alias])
    return ast.ImportFrom(statement.module, [alias], statement.level)


def _imported(node: ast.AST, home: str) -> Iterator[Part]:
    """Yield the parts of our packages that the imports and strings in a piece of code of the module `home` name."""
    for part in _walk(node):
        if isinstance(part, ast.Import):
            yield from ((alias.name, WHOLE) for alias in part.names if module_path(alias.name))
        elif isinstance(part, ast.ImportFrom) and part.module and not part.level:
            for alias in part.names:
                yield from _imported_from(part.module, alias.name)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            beside = f"{home.rpartition('.')[0]}.{part.value.removesuffix('.py')}"
            if module_path(part.value):
                yield part.value, WHOLE
            elif part.value.endswith(".py") and module_path(beside):
                yield beside, WHOLE


def _imported_from(module: str, name: str) -> Iterator[Part]:
    if module_path(f"{module}.{name}"):
        yield f"{module}.{name}", WHOLE
    elif module_path(module):
        is_shared = module.partition(".")[0] in SHARED and name in _definitions(module)[0]
        yield module, name if is_shared else WHOLE


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """ast.walk without what is under `if TYPE_CHECKING`, which never runs."""
    waiting = [node]
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, ast.If) and isinstance(part.test, ast.Name) and part.test.id == "TYPE_CHECKING":
            waiting += part.orelse
        else:
            waiting += ast.iter_child_nodes(part)


def _used_names(node: ast.AST) -> set[str]:
    return {part.id for part in _walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}


@cache
def _hash_part(module: str, name: str) -> str:
    tree = _parse(module) if name == WHOLE else _definitions(module)[0][name]
    digest = hashlib.sha256(ast.dump(tree).encode())
    path = module_path(module)
    assert path is not None
    for file in sorted((path.parent / "templates").glob("*")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def _parse(module: str) -> ast.Module:
    """Return the syntax tree of a module of ours without docstrings, and in defs/ without the decorators, which say how
    Dagster calls an asset and what it is given.
    """
    path = module_path(module)
    assert path is not None, f"no module {module} of ours"
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
        if isinstance(node, ast.FunctionDef) and module.startswith("emu_dagster.defs."):
            node.decorator_list = []
    return tree
