import importlib.util
import os
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from consilium.cli.main import main
from consilium.experiments.config import MEMBERS, load_experiment
from consilium.experiments.plan import plan

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
LEARNABLE = {"data.init_args.source.init_args.num_patients": 60, "trainer.max_epochs": 5,
          "model.init_args.optimizer": {"lr": 0.004},
          "model.init_args.lr_scheduler": {"name": "cosine"}}  # fmt: skip
STAGES = {"dense_epochs": 2, "sparse_epochs": 2, "recovery": {"lr": 1e-3}}


@pytest.fixture(scope="module")
def make():
    """The module that converts notebooks; it imports Jupyter, which takes seconds."""
    spec = importlib.util.spec_from_file_location("make", ROOT / "notebooks/make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_cells(notebook):
    """The cells of a notebook."""
    import nbformat

    return nbformat.read(notebook, 4).cells


@pytest.fixture(scope="module")
def ensemble(tiny):
    """Folder of an experiment with two members and their ensemble."""
    folder = tiny.root / "notebooks"
    members = [folder / "members" / name for name in ("small", "large")]
    tiny.fit("notebooks_small", members[0], **LEARNABLE)
    changes = {"data.init_args.preprocess": {"size": 48, "clahe": 2.0}}
    tiny.fit("notebooks_large", members[1], **LEARNABLE, **changes)
    tables = [[str(m / "predictions" / f"{s}.parquet") for m in members] for s in ("val", "test")]
    voters = ["-o", str(folder / "voters"), "--draws", "50"]
    assert main(["ensemble", "--val", *tables[0], "--test", *tables[1], *voters]) == 0
    module = {
        "class_path": "lightning_modules.EnsembleModule",
        "init_args": {"members": list(map(str, members)), "voter": str(folder / "voters")},
    }
    configs = tiny.configs("notebooks_ensemble", model=module, **{
        key: value for key, value in LEARNABLE.items() if key.startswith("data")})  # fmt: skip
    assert main(["test", *configs, "--run", str(folder / "ensemble")]) == 0
    return folder


@pytest.fixture(scope="module")
def sparse(tiny):
    """Folder of an experiment with a sparse member and its control."""
    folder = tiny.root / "notebooks_sparse"
    for name, density in (("ast25-seed0", 0.25), ("all_weights-seed0", 1.0)):
        two_stages = {"class_path": "callbacks.TwoStageSparseTraining",
                      "init_args": {"density": density, **STAGES}}  # fmt: skip
        changes = {"trainer.callbacks+": [two_stages], "trainer.max_epochs": 4}
        tiny.fit(f"notebooks_{name}", folder / "members" / name, **changes)
    return folder


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One kernel for all notebooks, so that torch is loaded once; its home folder stays empty."""
    home = tmp_path_factory.mktemp("jupyter")
    variables = ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
    for name in variables:
        os.environ[name] = str(home / name.lower())
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT / "notebooks"))
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    for name in variables:
        del os.environ[name]


def execute(client, code):
    """The result of a cell as HTML or text; its error fails the test."""
    results = []

    def handle(message):
        if message["msg_type"] == "execute_result":
            results.append(message["content"]["data"])
        if message["msg_type"] == "error":
            pytest.fail("\n".join(message["content"]["traceback"][-4:]))

    client.execute_interactive(code, output_hook=handle, timeout=300)
    return results[0].get("text/html", results[0]["text/plain"]) if results else ""


def test_there_are_six_notebooks(make):
    assert make.sources() == SOURCES
    assert [file.stem[:2] for file in SOURCES] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda file: file.stem)
def test_notebook_is_up_to_date_with_its_source(make, source):
    assert make.to_notebook(source) == make.without_outputs(source.with_suffix(".ipynb"))
    cells = read_cells(source.with_suffix(".ipynb"))
    assert cells[1].metadata.get("tags") == ["parameters"]


@pytest.mark.parametrize("source", SOURCES[:5], ids=lambda file: file.stem)
def test_notebooks_of_the_demo_have_small_outputs_that_repository_pages_show(source):
    file = source.with_suffix(".ipynb")
    cells = [cell for cell in read_cells(file) if cell.cell_type == "code"]
    outputs = [output["data"] for cell in cells for output in cell.outputs]
    assert all(cell.outputs for cell in cells[2:])  # after parameters and imports
    assert any(data.keys() & {"image/png", "image/jpeg"} for data in outputs)
    assert not [data for data in outputs if "data:image" in data.get("text/html", "")]
    assert file.stat().st_size < 700_000
    assert str(ROOT) not in file.read_text()


def test_the_extra_of_the_notebooks_has_a_jupyter_that_opens_them():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[]", name)[0] for name in extras["optional-dependencies"]["notebooks"]}
    assert {"jupyterlab", "jupytext", "ipykernel"} <= names


@pytest.mark.parametrize("source", SOURCES, ids=lambda file: file.stem)
def test_default_parameters_name_a_shipped_experiment(source):
    parameters = {}
    exec(read_cells(source.with_suffix(".ipynb"))[1].source, parameters)
    folder = Path(parameters["EXPERIMENT"])
    experiment = load_experiment(ROOT / "configs/experiments" / f"{folder.name}.yaml")
    runs = {run.folder for run in plan(experiment, folder)}
    names = parameters.keys() & {"SPARSE", "CONTROL"}
    assert {folder / MEMBERS / parameters[name] for name in names} <= runs


@pytest.mark.parametrize("source", SOURCES, ids=lambda file: file.stem)
def test_every_output_answers_a_question_and_notebooks_only_call_libraries(source):
    cells = read_cells(source.with_suffix(".ipynb"))
    for before, cell in pairwise(cells):
        if cell.cell_type == "code" and before.cell_type == "markdown":
            assert "?" in before.source, before.source
        if cell.cell_type == "code":
            forbidden = ("def ", "class ", "while ", "lambda", "import numpy", "import pandas")
            assert not [text for text in forbidden if text in cell.source]


def run(source, kernel, experiment):
    """Runs a notebook on an experiment's folder and checks that each of its cells has a result."""
    execute(kernel, "%reset -f")  # removes the variables of the previous notebook
    results = []
    for cell in read_cells(source.with_suffix(".ipynb")):
        if cell.cell_type == "code":
            results.append(execute(kernel, cell.source))
        if cell.metadata.get("tags") == ["parameters"]:
            execute(kernel, f"EXPERIMENT = {str(experiment)!r}")
    assert sum("<table" in result or "<img" in result for result in results) >= 3, source
    assert all("consilium" in result or "dataframe" in result for result in results[2:]), source


@pytest.mark.exhaustive
def test_notebooks_1_to_5_run_on_an_ensemble(kernel, ensemble):
    for source in SOURCES[:5]:
        run(source, kernel, ensemble)


@pytest.mark.exhaustive
def test_notebook_6_runs_on_a_sparse_member(kernel, sparse):
    run(SOURCES[5], kernel, sparse)
