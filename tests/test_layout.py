import ast
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAYERS = {  # each imports itself and what stands behind it
    "consilium.cli": {"consilium.experiments", "consilium.serving"},
    "consilium.experiments": {"consilium.training"},
    "consilium.training": {"consilium.inference"},
    "consilium.serving": {"consilium.inference"},
    "consilium.inference": {"callbacks", "consilium.config_files"},
    "consilium.config_files": set(),
    "callbacks": {"lightning_modules"},
    "lightning_modules": {"evaluation", "datamodules"},
    "evaluation": set(),
    "datamodules": set(),
}
PACKAGES = ("callbacks", "consilium", "datamodules", "evaluation", "lightning_modules")
FRONT_DOOR = {"consilium.cli.main", "consilium.__main__"}


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(f): f for package in PACKAGES for f in sorted((ROOT / package).rglob("*.py"))}


def imported(file: Path) -> set[str]:
    """Our modules that a file imports, those within functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in FILES else node.module for name in whole}
    return names & set(FILES)


def layer_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "consilium" else parts[0]


def below(layer: str) -> set[str]:
    direct = LAYERS.get(layer, set())
    return {layer, "consilium"} | direct | {deep for name in direct for deep in below(name)}


@pytest.mark.parametrize("module", sorted(set(FILES) - FRONT_DOOR))
def test_imports_run_downwards(module):
    layers = {layer_of(name) for name in imported(FILES[module])}
    assert layers <= below(layer_of(module))


def test_no_imports_in_a_circle():
    graph = {name: imported(file) - {name} for name, file in FILES.items()}
    packages = {name for name, file in FILES.items() if file.name == "__init__.py"}
    graph = {name: needs - packages for name, needs in graph.items() if name not in packages}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("module", sorted(n for n in FILES if n.startswith("consilium.cli.")))
def test_commands_import_no_commands(module):
    commands = {f"consilium.cli.{name}" for name in shared_by_commands()}
    others = {n for n in imported(FILES[module]) if n.startswith("consilium.cli.")} - commands
    assert module in FRONT_DOOR or not others


def shared_by_commands() -> set[str]:
    """Modules of the command line that are no command: they have no `run(args)`."""
    trees = {
        n: ast.parse(f.read_text()) for n, f in FILES.items() if n.startswith("consilium.cli.")
    }
    runs = {n for n, tree in trees.items() for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "run"}  # fmt: skip
    return {name.rsplit(".", 1)[1] for name in trees if name not in runs}


@pytest.mark.parametrize("folder", ["notebooks", "benchmarks"])
def test_notebooks_and_benchmarks_import_no_commands(folder):
    for file in sorted((ROOT / folder).glob("*.py")):
        assert not {n for n in imported(file) if n.startswith("consilium.cli")}, file


def test_every_package_is_installed():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {name for name, file in FILES.items() if file.name == "__init__.py"}
    assert sorted(setup) == sorted([*packages, "consilium.configs"])


def test_each_class_path_stands_in_one_config_of_a_kind():
    models = [yaml.safe_load(f.read_text()) for f in (ROOT / "configs/model").glob("*.yaml")]
    assert models
    assert all("class_path" in model for model in models)
    for file in (ROOT / "configs/recipe").glob("*.yaml"):
        assert "class_path" not in (yaml.safe_load(file.read_text()).get("model") or {}), file
