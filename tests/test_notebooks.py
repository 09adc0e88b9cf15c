import importlib.util
import os
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

from consilium.cli.main import main
from consilium.experiments.config import MEMBERS, load_experiment
from consilium.experiments.plan import plan

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("make", ROOT / "notebooks/make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)
SOURCES = make.sources()
LEARNT = {"data.init_args.source.init_args.patients": 60, "trainer.max_epochs": 5,
          "model.init_args.optimizer": {"lr": 0.004},
          "model.init_args.lr_scheduler": {"name": "cosine"}}  # fmt: skip
STAGES = {"dense_epochs": 2, "sparse_epochs": 2, "recovery": {"lr": 1e-3}}


@pytest.fixture(scope="module")
def ensemble(tiny):
    """Folder of a study with two members and their ensemble."""
    folder = tiny.root / "explored"
    members = [folder / "members" / name for name in ("small", "large")]
    tiny.fit("explored_small", members[0], **LEARNT)
    larger = {"data.init_args.preprocess": {"size": 48, "clahe": 2.0}}
    tiny.fit("explored_large", members[1], **LEARNT, **larger)
    tables = [[str(m / "predictions" / f"{s}.parquet") for m in members] for s in ("val", "test")]
    voters = ["-o", str(folder / "voters"), "--draws", "50"]
    assert main(["ensemble", "--val", *tables[0], "--test", *tables[1], *voters]) == 0
    module = {
        "class_path": "lightning_modules.EnsembleModule",
        "init_args": {"members": list(map(str, members)), "voter": str(folder / "voters")},
    }
    configs = tiny.configs("explored_ensemble", model=module, **{
        key: value for key, value in LEARNT.items() if key.startswith("data")})  # fmt: skip
    assert main(["test", *configs, "--run", str(folder / "ensemble")]) == 0
    return folder


@pytest.fixture(scope="module")
def sparse(tiny):
    """Folder of a study with a sparse member and its control."""
    folder = tiny.root / "explored_sparse"
    for name, density in (("ast25-seed0", 0.25), ("all_weights-seed0", 1.0)):
        two_stages = {"class_path": "callbacks.TwoStageSparseTraining",
                      "init_args": {"density": density, **STAGES}}  # fmt: skip
        changes = {"trainer.callbacks+": [two_stages], "trainer.max_epochs": 4}
        tiny.fit(f"explored_{name}", folder / "members" / name, **changes)
    return folder


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One kernel for all, so that torch is loaded once; nothing is written to the home."""
    home = tmp_path_factory.mktemp("jupyter")
    places = ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
    for name in places:
        os.environ[name] = str(home / name.lower())
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT / "notebooks"))
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    for name in places:
        del os.environ[name]


def execute(client, code):
    """What a cell shows last, as HTML or text; its error fails the test."""
    shown = []

    def take(message):
        if message["msg_type"] == "execute_result":
            shown.append(message["content"]["data"])
        if message["msg_type"] == "error":
            pytest.fail("\n".join(message["content"]["traceback"][-4:]))

    client.execute_interactive(code, output_hook=take, timeout=300)
    return shown[0].get("text/html", shown[0]["text/plain"]) if shown else ""


def test_there_are_the_six():
    assert [file.stem[:2] for file in SOURCES] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda file: file.stem)
def test_a_notebook_made_again_is_the_same(source):
    assert make.made(source) == source.with_suffix(".ipynb").read_text()
    cells = nbformat.read(source.with_suffix(".ipynb"), 4).cells
    assert cells[1].metadata.get("tags") == ["parameters"]
    assert not [cell for cell in cells if cell.cell_type == "code" and cell.outputs]


@pytest.mark.parametrize("source", SOURCES, ids=lambda file: file.stem)
def test_what_a_notebook_looks_at_unasked_is_of_a_shipped_study(source):
    asked = {}
    exec(nbformat.read(source.with_suffix(".ipynb"), 4).cells[1].source, asked)
    folder = Path(asked["STUDY"])
    study = load_experiment(ROOT / "configs/experiments" / f"{folder.name}.yaml")
    runs = {run.folder for run in plan(study, folder)}
    assert {folder / MEMBERS / asked[name] for name in asked.keys() & {"SPARSE", "CONTROL"}} <= runs


@pytest.mark.parametrize("source", SOURCES, ids=lambda file: file.stem)
def test_every_picture_answers_a_question_and_nothing_is_computed_here(source):
    cells = nbformat.read(source.with_suffix(".ipynb"), 4).cells
    for before, cell in pairwise(cells):
        if cell.cell_type == "code" and before.cell_type == "markdown":
            assert "?" in before.source, before.source
        if cell.cell_type == "code":
            words = ("def ", "class ", "while ", "lambda", "import numpy", "import pandas")
            assert not [word for word in words if word in cell.source]


def run(source, kernel, study):
    """Runs a notebook on a study; each of its cells shows something."""
    execute(kernel, "%reset -f")  # nothing is left over from the notebook before
    shown = []
    for cell in nbformat.read(source.with_suffix(".ipynb"), 4).cells:
        if cell.cell_type == "code":
            shown.append(execute(kernel, cell.source))
        if cell.metadata.get("tags") == ["parameters"]:
            execute(kernel, f"STUDY = {str(study)!r}")
    assert sum("<table" in each or "<img" in each for each in shown) >= 3, source
    assert all("consilium" in each or "dataframe" in each for each in shown[2:]), source


@pytest.mark.exhaustive
def test_five_run_on_an_ensemble(kernel, ensemble):
    for source in SOURCES[:5]:
        run(source, kernel, ensemble)


@pytest.mark.exhaustive
def test_one_runs_on_a_sparse_member(kernel, sparse):
    run(SOURCES[5], kernel, sparse)
