"""One way through the house: a module imports only what stands before it in docs/architecture.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "adapters" / "genre"
PAGE = ROOT / "docs" / "architecture.md"

ALLOWED = {  # looked up when they are first used, so that a base or an encoder can be named without a folder
    ("base_source", "sources"),
    ("encoder", "sources"),
    ("registry.core", "registry.remote"),
}


def order() -> list[set[str]]:
    """The page's line: groups between `·`; a name with `…` stands for every module that begins with it."""
    text = re.search(r"in the order in which they may import\n\n(.*?)\n\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert text, "docs/architecture.md has no line of the order"
    return [set(re.findall(r"`([a-z_]+…?)`", group)) for group in text.group(1).split("·")]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def unit(module: str) -> str:
    """A package counts as one module: its insides have an order of their own."""
    return module.split(".")[0]


def rank(module: str) -> int:
    """The place of a module in the order; the longest name that fits wins."""
    best = (-1, -1)
    for place, names in enumerate(order()):
        for name in names:
            stem = name.removesuffix("…")
            if module == stem or (name.endswith("…") and module.startswith(stem)):
                best = max(best, (len(stem), place))
    return best[1]


def imports(path: Path) -> set[str]:
    """Modules of genre that a file imports, inside functions too, but not for type checking only."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                for other in child.orelse:
                    walk(other)
                continue
            if isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path} imports by dots"
                if child.module == "genre":
                    found.update(alias.name for alias in child.names)
                elif child.module and child.module.startswith("genre."):
                    found.add(child.module.removeprefix("genre."))
            elif isinstance(child, ast.Import):
                found.update(alias.name.removeprefix("genre.") for alias in child.names if alias.name.startswith("genre."))
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return found - {"_version"}


FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "_version.py" and path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_module_imports_only_what_stands_before_it(path):
    own = module_of(path)
    assert rank(unit(own)) >= 0, f"{own} is missing in docs/architecture.md"
    for other in imports(path):
        if unit(other) == unit(own) or (own, other) in ALLOWED:
            continue
        assert rank(unit(other)) <= rank(unit(own)), f"{own} imports {other}, which stands after it"


def test_no_two_files_import_each_other_at_the_top():
    """Within a group of the order too: what runs at import time has no circle."""
    modules = {module_of(path) for path in FILES}
    edges: dict[str, set[str]] = {module: set() for module in modules}
    for path in FILES:
        own = module_of(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("genre."):
                other = node.module.removeprefix("genre.")
                parts = {f"{other}.{alias.name}" for alias in node.names} & modules
                edges[own] |= parts or {other} - {unit(own)}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module not in done:
            for other in sorted(edges.get(module, ())):
                visit(other, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_every_name_of_the_order_is_a_module():
    modules = {unit(module_of(path)) for path in FILES}
    for names in order():
        for name in names:
            stem = name.removesuffix("…")
            assert stem in modules or (name.endswith("…") and any(module.startswith(stem) for module in modules)), name
