"""The structure of the source tree, checked: `python infra/lint/structure.py`, exit code 1 if a limit is exceeded.

The limits:

- no cycle of imports between modules; imports inside functions and below `if TYPE_CHECKING` count;
- no import from a lower package to a higher one (`PACKAGES` lists them, lowest first);
- at most `MAX_MODULES` modules in a folder, `MAX_LINES` lines in a file, `MAX_COLUMNS` characters in a line;
- at most `MAX_LOCAL_IMPORTS` names imported inside functions from the project's own modules, in the whole project;
- a docstring for at least `MIN_DOCUMENTED` of the public classes and functions.

Everything is read from the syntax trees; nothing is imported.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGES = ("index", "model", "ingest", "pipeline", "sightline")
"""The packages, lowest first: each may import itself and those before it."""

MAX_MODULES = 14
"""Most modules of one folder, `__init__.py` not counted."""

MAX_LINES = 500
"""Most lines of one file."""

MAX_COLUMNS = 120
"""Most characters of one line."""

MAX_LOCAL_IMPORTS = 40
"""Most names imported inside functions from the project's own modules, in all files together."""

MIN_DOCUMENTED = 0.97
"""Least share of public classes and functions with a docstring."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Import:
    """One import of a module of the project."""

    source: str
    """The module that imports."""
    target: str
    """The module that is imported."""
    line: int
    """The line of the statement."""
    local: bool
    """Whether the statement is inside a function."""


@dataclass(slots=True)
class Module:
    """What is known of one file."""

    path: Path
    """Relative to the root of the project."""
    name: str
    """The dotted name; that of the package for an `__init__.py`."""
    text: str
    """The source."""
    imports: list[Import] = field(default_factory=list)
    """Imports of the project's own modules."""
    documented: int = 0
    """Public definitions with a docstring."""
    undocumented: list[str] = field(default_factory=list)
    """`path:line name` of each public definition without one."""


def read_modules(root: Path) -> list[Module]:
    """Read every Python file of the packages below `root`."""
    paths = [path.relative_to(root) for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    modules = [
        Module(path, ".".join(path.with_suffix("").parts).removesuffix(".__init__"), (root / path).read_text("utf-8"))
        for path in paths
    ]
    names = {module.name for module in modules}
    for module in modules:
        tree = ast.parse(module.text, str(module.path))
        module.imports = list(find_imports(module.name, tree, names))
        for definition in public_definitions(tree):
            if ast.get_docstring(definition) is not None:
                module.documented += 1
            else:
                module.undocumented.append(f"{module.path}:{definition.lineno} {definition.name}")
    return modules


def find_imports(name: str, tree: ast.Module, names: set[str]) -> Iterator[Import]:
    """Find the imports of modules in `names`, one for each imported name.

    The target of `from package import module` is the module.
    """
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    local = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [name if name in names else node.module for name in within]
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            continue
        for target in targets:
            if target in names and target != name:
                yield Import(name, target, node.lineno, id(node) in local)


def public_definitions(tree: ast.Module) -> Iterator[Definition]:
    """Find the classes and functions whose names do not begin with an underscore."""
    for node in ast.walk(tree):
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node


def find_cycle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the modules of one cycle, the first of them again at the end; empty if there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle[::-1]
    return []


def check_imports(modules: list[Module]) -> Iterator[str]:
    """Check cycles, the order of the packages, and the number of local imports."""
    imports = [each for module in modules for each in module.imports]
    edges: dict[str, set[str]] = {module.name: set() for module in modules}
    for each in imports:
        edges[each.source].add(each.target)
    if cycle := find_cycle(edges):
        yield f"import cycle: {' -> '.join(cycle)}"
    for each in imports:
        source, target = (PACKAGES.index(name.partition(".")[0]) for name in (each.source, each.target))
        if target > source:
            yield f"{each.source}, line {each.line}: imports {each.target}, which is in a higher package"
    local = [each for each in imports if each.local]
    if len(local) > MAX_LOCAL_IMPORTS:
        most = ", ".join(f"{name} {count}" for name, count in Counter(each.source for each in local).most_common(8))
        yield f"{len(local)} imports inside functions, at most {MAX_LOCAL_IMPORTS}: {most}"


def check_sizes(modules: list[Module]) -> Iterator[str]:
    """Check modules of a folder, lines of a file and characters of a line."""
    counts = Counter(m.path.parent for m in modules if m.path.name != "__init__.py")
    for folder, count in counts.items():
        if count > MAX_MODULES:
            yield f"{folder}: {count} modules, at most {MAX_MODULES}"
    for module in modules:
        lines = module.text.splitlines()
        if len(lines) > MAX_LINES:
            yield f"{module.path}: {len(lines)} lines, at most {MAX_LINES}"
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_COLUMNS:
                yield f"{module.path}:{number}: {len(line)} characters, at most {MAX_COLUMNS}"


def check_docstrings(modules: list[Module]) -> Iterator[str]:
    """Check the share of public definitions with a docstring."""
    documented = sum(module.documented for module in modules)
    undocumented = [each for module in modules for each in module.undocumented]
    if documented < MIN_DOCUMENTED * (documented + len(undocumented)):
        yield from (f"{each}: no docstring" for each in undocumented)
        yield f"{documented} of {documented + len(undocumented)} public definitions have a docstring"


def main(root: Path) -> int:
    """Print each violation and a summary; return the exit code."""
    modules = read_modules(root)
    problems = [*check_imports(modules), *check_sizes(modules), *check_docstrings(modules)]
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    local = sum(each.local for module in modules for each in module.imports)
    documented = sum(module.documented for module in modules)
    public = documented + sum(len(module.undocumented) for module in modules)
    sys.stdout.write(
        f"structure: {len(modules)} modules, {local} local imports, {documented} of {public} public definitions "
        f"documented, {len(problems)} problems\n"
    )
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[2]))
