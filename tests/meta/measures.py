"""Prints how large the parts of the source tree are: `python tests/meta/measures.py`."""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FOLDERS = ("helios_serve", "model_executor", "kernels", "benchmarks")
LONG_FUNCTION = 60
"""Lines that a function should not exceed."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Measures(NamedTuple):
    """Sizes of a source tree. Lines include blank lines and docstrings, but no decorators."""

    import_cycles: int
    files: int
    file_lines_median: float
    file_lines_max: int
    function_lines_median: float
    function_lines_p95: float
    function_lines_max: int
    functions_over_60_lines: int
    methods_per_class_max: int
    modules_per_folder_max: int
    modules_imported_once: int


def measure(root: Path = ROOT) -> Measures:
    """Measure helios_serve, model_executor, kernels and benchmarks below `root`."""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    texts = {path: path.read_text() for path in paths}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    files = [len(text.splitlines()) for text in texts.values()]
    functions = [lines_of(node) for node in nodes if isinstance(node, Function)]
    folders = Counter(path.parent for path in paths if path.name != "__init__.py")
    imports = import_graph({module_name(path, root): tree for path, tree in trees.items()})
    importers = Counter(target for targets in imports.values() for target in targets)
    for path in trees:
        if path.name == "__init__.py":  # imported on the way to its modules
            importers.pop(module_name(path, root), None)
    return Measures(
        import_cycles=count_cycles(imports),
        files=len(paths),
        file_lines_median=median(files),
        file_lines_max=max(files),
        function_lines_median=median(functions),
        function_lines_p95=quantiles(functions, n=20)[-1],
        function_lines_max=max(functions),
        functions_over_60_lines=sum(lines > LONG_FUNCTION for lines in functions),
        methods_per_class_max=max(
            sum(isinstance(child, Function) for child in node.body)
            for node in nodes
            if isinstance(node, ast.ClassDef)
        ),
        modules_per_folder_max=max(folders.values()),
        modules_imported_once=sum(count == 1 for count in importers.values()),
    )


def lines_of(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def module_name(path: Path, root: Path) -> str:
    """The name under which a file is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts if parts[0] == "helios_serve" else ("helios_serve", *parts)
    return ".".join(parts).removesuffix(".__init__")


def import_graph(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """The modules of the tree that each module imports, anywhere in its file.

    The package itself is no target: it is loaded before any of its modules, and imports `offline`
    only when `Helios` is asked for.
    """
    targets = trees.keys() - {"helios_serve"}
    return {name: set(imported(tree)) & targets - {name} for name, tree in trees.items()}


def imported(tree: ast.Module) -> Iterator[str]:
    """Names of imported modules, and names that may be modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def count_cycles(imports: Mapping[str, set[str]]) -> int:
    """Groups of modules that import each other, directly or through others."""
    reached = {name: reachable(name, imports) for name in imports}
    groups = {
        frozenset(other for other in seen if name in reached[other])
        for name, seen in reached.items()
        if name in seen
    }
    return len(groups)


def reachable(name: str, imports: Mapping[str, set[str]]) -> set[str]:
    """All modules that `name` imports, directly or through others."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        new = imports[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


if __name__ == "__main__":
    for what, value in measure()._asdict().items():
        print(f"{what.replace('_', ' '):26} {value:g}")
