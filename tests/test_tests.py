"""What a test may know: the module it is named after, scripts, and what modules know of each other."""

import ast
import functools
from pathlib import Path

import pytest
from conftest import REPO_ROOT, read_strictly

CODE = ("cot/*.py", "cot/utils/*.py", "rl/*.py", "evaluate_rl.py")


def imports_of(code: str) -> set[tuple[str, str]]:
    """Module and name of all that is imported of this project; of a whole module the name is empty."""
    found = {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if node.module.partition(".")[0] in ("cot", "rl", "evaluate_rl")
    }
    return {
        (f"{module}.{name}", "") if module in ("cot", "cot.utils", "rl") else (module, name)
        for module, name in found
    }


@pytest.fixture(scope="module")
def shared() -> set[tuple[str, str]]:
    """What a module or the notebook imports of a module."""
    modules = [path.read_text() for pattern in CODE for path in REPO_ROOT.glob(pattern)]
    cells = read_strictly(REPO_ROOT / "data" / "analysis.ipynb")["cells"]
    notebook = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return set().union(*map(imports_of, modules + notebook))


@functools.cache
def defined_in(module: str) -> set[str]:
    """The classes of a module, and `main` of a script."""
    source = REPO_ROOT / f"{module.replace('.', '/')}.py"
    body = ast.parse(source.read_text()).body
    return {
        node.name for node in body if isinstance(node, ast.ClassDef) or getattr(node, "name", "") == "main"
    }


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("test_*.py")), ids=lambda path: path.stem)
def test_a_test_knows_no_inside_of_another_module(path, shared):
    for module, name in imports_of(path.read_text()):
        assert not name.startswith("_"), (module, name)
        is_its_own = module.rpartition(".")[2] == path.stem.removeprefix("test_")
        found = defined_in(module)  # a class is what a function takes or gives
        assert is_its_own or "main" in found or name in found or (module, name) in shared, (module, name)
