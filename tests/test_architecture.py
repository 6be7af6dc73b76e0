"""Holds the house: which file may import which, what stays free of torch, how files are called and how long they get.

The checks are functions from a source tree to a list of complaints, so that the tests at the end of this file can show
each of them a small tree that breaks its rule.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
PACKAGE = "exoalign"

# A file imports only from lower levels, or from what stands before it on its own level. A name stands for a file or for
# a whole folder, in which files import each other in any order, but without cycles. The package's own __init__.py and
# __main__.py are not listed: they may import everything, and nothing may import them.
# fmt: off
LEVELS = [
    ["errors", "_version", "differences", "files", "finished", "progress", "groups", "estimators", "kl_estimators",
     "config_data", "config_online", "config_ppo", "config_train", "config_sft", "config_reward_model", "config_sample",
     "config_judge", "config_reward", "config", "config_runs", "config_compare", "recipe_paths", "recipe",
     "compare_recipe", "cells"],
    ["losses", "objectives", "reward_losses", "rl_losses", "data", "lab"],
    ["demo_model", "adapters", "models", "logprobs", "estimate"],
    ["sampling", "rewards"],
    ["train", "evaluate", "merging"],
    ["partial", "store", "listing", "report", "stages_sample", "stages_score", "stages", "stages_online", "stages_evaluate",
     "stages_sft", "stages_reward_model", "stages_judge", "inputs", "plan", "forecast", "chain", "pipeline",
     "stages_compare", "compare_chain", "comparison_rates", "comparison_results", "comparison"],
    ["tables", "cli_options", "cli_run", "cli_align", "cli_data", "cli_doctor", "cli_runs", "cli_sft", "cli_sample",
     "cli_score", "cli_reward", "cli_judge", "cli_compare", "cli_evaluate", "cli"],
]
# fmt: on
TOP = ("", "__main__")  # the package's __init__.py and __main__.py
TORCH_FREE = [
    "",
    "config",
    "recipe",
    "groups",
    "estimators",
    "kl_estimators",
    "report",
    "cli",
]  # "": `import exoalign` itself
HEAVY = ["torch", "transformers", "accelerate", "peft", "safetensors.torch"]  # all of these import torch
FORBIDDEN_NAMES = ["utils", "helpers", "misc"]
MOST_LINES = 300


@dataclass(frozen=True)
class Import:
    """One imported module; unless `external`, `target` is a name inside the package: "data.pairs", or "" for itself."""

    source: str
    target: str
    line: int
    external: bool
    when: str  # "import" (runs when the file is imported), "call" (inside a function) or "typing" (under TYPE_CHECKING)


@dataclass(frozen=True)
class Tree:
    modules: dict[str, Path]
    imports: list[Import]

    def inside(self) -> list[Import]:
        return [i for i in self.imports if not i.external]


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def read_tree(folder: Path, levels: list[list[str]] = LEVELS) -> Tree:
    """Read all Python files under `folder`, which is the package's own folder."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    known = set(modules) | {name for level in levels for name in level}
    imports = []
    for module, path in modules.items():
        is_folder = path.name == "__init__.py"
        for node, when in walk_imports(ast.parse(path.read_text(encoding="utf-8"), str(path)), "import"):
            for full_name in imported_names(node, module, is_folder, known):
                external = not within(full_name, PACKAGE)
                target = full_name if external else full_name[len(PACKAGE) + 1 :]
                imports.append(Import(module, target, node.lineno, external, when))
    return Tree(modules, imports)


def walk_imports(node: ast.AST, when: str) -> Iterator[tuple[ast.Import | ast.ImportFrom | ast.Call, str]]:
    """All imports below `node`, with when they run; `import_module("exoalign…")` counts as an import."""
    if isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.Call) and dynamic_name(node)):
        yield node, when
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        branches = [(child, "typing") for child in node.body] + [(child, when) for child in node.orelse]
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        branches = [(child, "call" if when == "import" else when) for child in ast.iter_child_nodes(node)]
    else:
        branches = [(child, when) for child in ast.iter_child_nodes(node)]
    for child, child_when in branches:
        yield from walk_imports(child, child_when)


def dynamic_name(call: ast.Call) -> str | None:
    function = ast.unparse(call.func).rpartition(".")[2]
    if function in ("import_module", "__import__") and call.args and isinstance(call.args[0], ast.Constant):
        name = call.args[0].value
        return name if isinstance(name, str) and not name.startswith(".") else None
    return None


def imported_names(node: ast.AST, module: str, is_folder: bool, known: set[str]) -> list[str]:
    """Full names of the modules that an import in `module` names; `known` tells a module from an attribute."""
    if isinstance(node, ast.Call):
        return [dynamic_name(node) or ""]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        here = [PACKAGE, *module.split(".")] if module else [PACKAGE]
        folder = here if is_folder else here[:-1]
        folder = folder[: len(folder) - node.level + 1]
        base = ".".join([*folder, base] if base else folder)
    if not within(base, PACKAGE):
        return [f"{base}.{alias.name}" for alias in node.names]
    inner = base[len(PACKAGE) + 1 :]
    names = [f"{inner}.{alias.name}" if inner else alias.name for alias in node.names]
    return sorted({f"{PACKAGE}.{name}" if name in known else base for name in names})


def place(module: str, levels: list[list[str]]) -> tuple[int, int, str] | None:
    """Level, position and listed name of a module; None for one that the table does not hold."""
    for number, level in enumerate(levels):
        for position, prefix in enumerate(level):
            if within(module, prefix):
                return number, position, prefix
    return None


def find_unplaced(tree: Tree, levels: list[list[str]] = LEVELS) -> list[str]:
    return [
        f"{path.name} ({PACKAGE}.{module}) stands on no level: add it to LEVELS in tests/test_architecture.py"
        for module, path in tree.modules.items()
        if module not in TOP and place(module, levels) is None
    ]


def find_upward_imports(tree: Tree, levels: list[list[str]] = LEVELS) -> list[str]:
    complaints = []
    for i in tree.inside():
        if i.source in TOP:
            continue
        where = f"{tree.modules[i.source].name}:{i.line}: {PACKAGE}.{i.source} imports "
        source, target = place(i.source, levels), place(i.target, levels)
        if i.target in TOP:
            complaints.append(f"{where}the package itself: import the module that holds the name")
        elif target is None:
            complaints.append(f"{where}{PACKAGE}.{i.target}, which stands on no level")
        elif source is not None and target > source:
            complaints.append(f"{where}{PACKAGE}.{i.target}: L{target[0]} stands above or after it on L{source[0]}")
    return complaints


def find_cycles(tree: Tree) -> list[str]:
    """Circles of files that import each other, at whatever time the imports run."""
    edges: dict[str, set[str]] = {module: set() for module in tree.modules}
    for i in tree.inside():
        target = i.target
        while target not in tree.modules and target:  # a name inside a module, or a file that is not there yet
            target = target.rpartition(".")[0]
        if target in tree.modules and target != i.source:
            edges[i.source].add(target)
    found, done = [], set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circle = [*path[path.index(module) :], module]
            found.append(" -> ".join(f"{PACKAGE}.{name}" if name else PACKAGE for name in circle))
        elif module not in done:
            for target in sorted(edges[module]):
                visit(target, [*path, module])
            done.add(module)

    for module in edges:
        visit(module, [])
    return found


def find_heavy_imports(tree: Tree, prefix: str, heavy: list[str] = HEAVY) -> list[str]:
    """Chains of imports by which importing the module or folder `prefix` loads one of `heavy`."""
    waiting = [(module, "import") for module in tree.modules if module == prefix or (prefix and within(module, prefix))]
    seen, complaints = set(), []
    while waiting:
        module, chain = waiting.pop()
        if module in seen or module not in tree.modules:
            continue
        seen.add(module)
        chain = f"{chain} -> {PACKAGE}.{module}" if module else f"{chain} -> {PACKAGE}"
        if module:  # importing a module runs the __init__.py of each folder above it
            waiting.append((module.rpartition(".")[0], chain))
        for i in tree.imports:
            if i.source != module or i.when != "import":
                continue
            if not i.external:
                waiting.append((i.target, chain))
            elif any(within(i.target, name) for name in heavy):
                complaints.append(f"{chain} -> {i.target} (line {i.line}): import it inside the function that needs it")
    return complaints


def find_forbidden_names(folder: Path) -> list[str]:
    paths = sorted(folder.rglob("*"))
    return [f"{p.relative_to(folder)}: name it after what it holds" for p in paths if p.stem in FORBIDDEN_NAMES]


def find_long_files(folder: Path) -> list[str]:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in sorted(folder.rglob("*.py"))}
    return [
        f"{p.relative_to(folder)} has {n} lines, more than {MOST_LINES}" for p, n in lengths.items() if n > MOST_LINES
    ]


# The package.


@pytest.fixture(scope="module")
def package() -> Tree:
    return read_tree(SOURCE / PACKAGE)


def test_every_file_stands_on_a_level(package):
    assert find_unplaced(package) == []


def test_imports_go_down(package):
    assert find_upward_imports(package) == []


def test_no_file_imports_itself_through_others(package):
    assert find_cycles(package) == []


@pytest.mark.parametrize("prefix", TORCH_FREE)
def test_import_statements_leave_torch_alone(package, prefix):
    assert find_heavy_imports(package, prefix) == []


@pytest.mark.parametrize("prefix", TORCH_FREE)
def test_a_fresh_interpreter_imports_it_without_torch(package, prefix):
    modules = [
        m for m in package.modules if m == prefix or (prefix and within(m, prefix) and not m.endswith("__main__"))
    ]
    if not modules:
        pytest.skip(f"{PACKAGE}.{prefix} is not there yet")
    imports = "; ".join(f"import {PACKAGE}.{m}" if m else f"import {PACKAGE}" for m in modules)
    code = f"{imports}; import sys; print(*({{'torch', 'transformers'}} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_files_are_named_after_what_they_hold():
    assert find_forbidden_names(SOURCE / PACKAGE) == []


def test_no_file_is_long():
    assert find_long_files(SOURCE / PACKAGE) == []


# Each rule can fail.


@pytest.fixture
def tree_of(tmp_path):
    def write(files: dict[str, str]) -> Tree:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return read_tree(tmp_path)

    return write


def test_a_file_outside_the_table_is_named(tree_of):
    complaints = find_unplaced(tree_of({"errors.py": "", "lossy.py": "", "__init__.py": "", "__main__.py": ""}))
    assert len(complaints) == 1
    assert "exoalign.lossy" in complaints[0]


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("losses.py", "from exoalign.models import load"),  # a higher level, and a file that is not there
        ("losses.py", "import exoalign.train.align"),
        ("losses.py", "from exoalign import cli"),
        ("losses.py", "from . import cli"),
        ("data/pairs.py", "from ..train import align"),
        ("data/__init__.py", "from ..train.align import step"),
        ("errors.py", "from exoalign.groups import Group"),  # later on its own level
        ("losses.py", "def f():\n    from exoalign.models import load"),
        (
            "losses.py",
            "class A:\n    def f(self):\n        try:\n            import exoalign.cli\n        finally: ...",
        ),
        ("losses.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from exoalign.models import Policy"),
        ("losses.py", "import importlib\ncli = importlib.import_module('exoalign.cli')"),
        ("losses.py", "from exoalign import __version__"),  # the package's __init__.py stands above everything
        ("losses.py", "import exoalign"),
        ("losses.py", "from exoalign.lossy import f"),  # on no level
    ],
)
def test_an_upward_import_is_found(tree_of, name, statement):
    assert len(find_upward_imports(tree_of({name: statement, "cli.py": "", "train/align.py": ""}))) == 1


def test_downward_imports_are_allowed(tree_of):
    files = {
        "groups.py": "from exoalign.errors import DataError\nimport torch",
        "losses.py": "from . import groups\nfrom exoalign import errors",
        "data/pairs.py": "from exoalign.data import columns\nfrom .columns import read\nfrom ..losses import exo",
        "data/columns.py": "import exoalign.losses",
        "__init__.py": "from exoalign.cli import main",
        "__main__.py": "from exoalign import main",
    }
    assert find_upward_imports(tree_of(files)) == []
    assert find_cycles(tree_of(files)) == []


def test_a_cycle_is_found_even_when_a_function_hides_it(tree_of):
    files = {"data/a.py": "from .b import f", "data/b.py": "def f():\n    from exoalign.data import a"}
    assert find_cycles(tree_of(files)) == ["exoalign.data.a -> exoalign.data.b -> exoalign.data.a"]


def test_a_cycle_through_a_folder_is_found(tree_of):
    files = {"data/__init__.py": "from exoalign.data.a import f", "data/a.py": "from exoalign.data import g"}
    assert find_cycles(tree_of(files)) == ["exoalign.data -> exoalign.data.a -> exoalign.data"]


@pytest.mark.parametrize(
    "files",
    [
        {"config.py": "import torch.nn as nn"},
        {"config.py": "from transformers import AutoModel"},
        {"config.py": "from safetensors import torch"},
        {"config.py": "try:\n    import torch\nexcept ImportError:\n    torch = None"},
        {"config.py": "from exoalign import groups", "groups.py": "from .errors import E", "errors.py": "import torch"},
        {"config.py": "", "__init__.py": "from exoalign.losses import exo", "losses.py": "import torch"},
        {"config/__init__.py": "", "config/train.py": "import accelerate"},
    ],
)
def test_torch_is_found_behind_other_files(tree_of, files):
    assert len(find_heavy_imports(tree_of(files), "config")) == 1


def test_torch_in_functions_and_for_types_is_allowed(tree_of):
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import torch"
    tree = tree_of(
        {"config.py": late, "losses.py": "import torch", "__init__.py": "def f():\n    import exoalign.losses"}
    )
    assert find_heavy_imports(tree, "config") == []


def test_forbidden_names_are_found_in_folders_too(tree_of, tmp_path):
    tree_of({"data/helpers.py": "", "utils/pairs.py": "", "misc.py": "", "data/tokenize.py": ""})
    assert len(find_forbidden_names(tmp_path)) == 3


def test_a_file_of_301_lines_is_long(tree_of, tmp_path):
    tree_of({"losses.py": "x = 1\n" * 300, "cli.py": "x = 1\n" * 301})
    assert find_long_files(tmp_path) == ["cli.py has 301 lines, more than 300"]
