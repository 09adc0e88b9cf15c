import ast
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ROOMS = ("main", "commands", "lightning_modules", "callbacks", "evaluation", "datamodules")
ARROWS = {
    "main": {"commands"},  # the verbs themselves by name, when one is asked for
    "commands": {"commands", "lightning_modules", "callbacks", "evaluation", "datamodules"},
    "lightning_modules": {"lightning_modules", "evaluation"},
    "callbacks": {"callbacks", "evaluation"},
    "evaluation": {"evaluation"},
    "datamodules": {"datamodules"},
    "notebooks": {"commands", "evaluation", "datamodules"},
}


def imported(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
    return {name.split(".")[0] for name in names} & set(ROOMS)


@pytest.mark.parametrize("room", ARROWS)
def test_imports_run_down_the_floors(room):
    files = [ROOT / "main.py"] if room == "main" else sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        assert imported(file) <= ARROWS[room], file


def test_every_room_within_a_room_is_installed():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = [file.parent for room in ROOMS for file in (ROOT / room).rglob("__init__.py")]
    assert sorted(told) == sorted(".".join(each.relative_to(ROOT).parts) for each in there)


def test_front_door_is_small():
    assert len((ROOT / "main.py").read_text().splitlines()) < 60


def test_each_class_path_stands_in_one_config_of_a_kind():
    models = [yaml.safe_load(f.read_text()) for f in (ROOT / "configs/model").glob("*.yaml")]
    assert models
    assert all("class_path" in model for model in models)
    for file in (ROOT / "configs/recipe").glob("*.yaml"):
        assert "class_path" not in (yaml.safe_load(file.read_text()).get("model") or {}), file
