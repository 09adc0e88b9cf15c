"""The model card: each item is blank exactly if a file that it points to is missing."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from consilium.cli.main import main
from consilium.inference.card import OPEN, fill_items
from consilium.inference.card_contents import Artifacts, data_source, partitions
from consilium.inference.card_items import ITEMS
from evaluation.files import write_json
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.results import Results, read_results, write_results
from evaluation.stats.estimate import Estimate
from evaluation.subgroups import compute_subgroups

CLAIM = list(map(str, range(1, 45)))
PARTS = {3: 3, 5: 2, 6: 3, 8: 3, 9: 3, 12: 7, 18: 6, 20: 3, 23: 2, 27: 3}  # 3a, 3b, 3c, ...
TRIPOD = [f"{n}{part}" for n in range(1, 28) for part in "abcdefg"[: PARTS.get(n, 0)] or [""]]
PURPOSE = "Triage of adult radiographs by trained readers"
FOR_A_PERSON = {item.wording for item in ITEMS if item.fill is None}


def add_artefacts(run: Path, experiment: Path) -> None:
    """An audit, an external validation and measured saliency maps of a run; two body parts."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"]["clinical_use"] = {"purpose": PURPOSE, "threshold": 0.3}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    results = read_results(run / "results.json")
    table = PredictionTable.read(run / "predictions/test.parquet")
    rows = table.rows.loc[np.repeat(np.arange(len(table)), 10)]
    ids = [f"{name}-{k}" for k, name in enumerate(rows["id"])]
    rows = rows.assign(id=ids, body_part=np.where(np.arange(len(rows)) % 2, "wrist", "elbow"))
    logits = np.repeat(table.logits, 10, axis=0)
    larger = PredictionTable(rows, logits, table.class_names, table.meta)
    larger.write(run / "predictions/test.parquet")
    write_results(run / "results.json", replace(results, subgroups=compute_subgroups(larger)))
    counts = {"test": {"none": 5, "simple": 6, "comminuted": 7, "patients": 9}}
    issues = [{"message": "3 files are unreadable: secret.png", "is_leak": False}]
    audit = {"manifest_digest": results.meta["manifest_digest"], "files": 60, "patients": 30,
             "issues": issues, "counts": counts}  # fmt: skip
    write_json(experiment / "audit/abc/audit.json", audit)
    pointing = {"value": 0.5, "low": 0.2, "high": 0.8, "method": "Wilson", "n": 9, "patients": 9,
                "reason": ""}  # fmt: skip
    row = {"member": run.name, "method": "GradCAM", "estimates": {"pointing": pointing}}
    write_json(experiment / f"saliency/{run.name}/saliency.json", {"version": 2, "rows": [row]})
    metrics = compute_metrics(table, draws=50)
    shift = {"none": Estimate(0.2, 0.1, 0.3, "", 9, 9)}
    others = {"internal": metrics, "recalibrated/20": metrics,
              "prevalence/external minus internal": shift}  # fmt: skip
    external = Results("b", "test", table.class_names, metrics, others)
    write_results(run / "external/b/external.json", external)


@pytest.fixture(scope="module")
def experiment(tiny, resnet, larger, tmp_path_factory) -> Path:
    """An experiment with two members and their ensemble, each with all artefacts."""
    root = tmp_path_factory.mktemp("card") / "experiment"
    for run in (resnet, larger):
        shutil.copytree(run, root / "members" / run.name)
    model = {"class_path": "lightning_modules.EnsembleModule",
             "init_args": {"members": [str(root / "members" / "*")]}}  # fmt: skip
    configs = tiny.configs("card", model=model)
    assert main(["test", *configs, "--run", str(root / "ensemble")]) == 0
    for run in (root / "ensemble", root / "members/resnet"):
        add_artefacts(run, root)
    return root


@pytest.mark.parametrize("name", ["ensemble", "members/resnet"])
def test_a_missing_file_blanks_exactly_the_items_that_point_to_it(experiment, name, tmp_path):
    root = shutil.copytree(experiment, tmp_path / "copy")
    before = fill_items(root / name)
    blank = {filled.item.wording for filled in before if not filled.content}
    assert blank == FOR_A_PERSON
    assert all(bool(filled.files) == bool(filled.content) for filled in before)
    files = {file for filled in before for file in filled.files}
    suffixes = {
        "config.yaml",
        "results.json",
        "test.parquet",
        "best.ckpt",
        "history.csv",
        "model.json",
        "README.md",
        "audit.json",
        "external.json",
        "saliency.json",
    }
    assert {file.name for file in files} == suffixes | (
        {"ensemble.json"} if name == "ensemble" else set()
    )
    assert len(files) == (17 if name == "ensemble" else 10)
    for file in files:
        hidden = file.rename(file.with_name("hidden"))
        for old, new in zip(before, fill_items(root / name), strict=True):
            expected = "" if file in old.files else old.content
            assert new.content == expected, (file, old.item)
        hidden.rename(file)
    assert fill_items(root / name) == before


def test_every_item_of_both_standards_stands_once_in_words_of_ours():
    assert sorted(filter(None, (item.claim for item in ITEMS)), key=int) == CLAIM
    assert sorted(filter(None, (item.tripod for item in ITEMS))) == sorted(TRIPOD)
    assert all(item.claim or item.tripod for item in ITEMS)
    assert len({item.wording for item in ITEMS}) == len(ITEMS)


def test_contents_are_those_of_the_files(experiment):
    run = experiment / "members/resnet"
    contents = {f.item.wording: f.content for f in fill_items(run)}
    assert "optimizer adamw (lr 0.002" in contents[
        "Loss, optimizer, augmentation and length"]  # fmt: skip
    assert contents["Intended use, target population and users"] == PURPOSE
    assert "from the probability 0.3 on" in contents["What the output is, and how it becomes a "
                                                     "decision"]  # fmt: skip
    assert contents["Networks, inputs and outputs"].startswith(
        "test_resnet, 32 pixels, 3 outputs (softmax"
    )
    assert contents["Images of each class in each split"] == (
        "test: 5 none, 6 simple, 7 comminuted, 9 patients")  # fmt: skip
    assert "3 files are unreadable" in contents["Unreadable, missing and contradictory data"]
    accuracy = read_results(run / "results.json").metrics["accuracy"]
    assert f": Accuracy {accuracy.value:.2f} (" in contents["Performance with intervals"]
    table = PredictionTable.read(run / "predictions/test.parquet")
    wrong = int((table.predictions != table.labels).sum())
    assert contents["Errors"].startswith(f"{wrong} of {len(table)} images are wrong")
    assert re.match(r"body_part: elbow: accuracy .*; body_part: wrist: accuracy ",
                    contents["Fairness: groups that were compared"])  # fmt: skip
    assert "GradCAM of resnet: pointing 0.50" in contents["Explanations and how well they point"]
    assert "b: prevalence of none +" in contents["Robustness to other data"]
    ensemble = {f.item.wording: f.content for f in fill_items(experiment / "ensemble")}
    assert ensemble["Ensemble"] == "larger, resnet; voter soft, not fitted"
    assert ensemble["Libraries"] == contents["Libraries"]  # once for equal members
    networks = ensemble["Networks, inputs and outputs"]
    assert re.search(r"larger: test_resnet, 48 .*resnet: test_resnet, 32 .* from random", networks)


def test_the_card_of_an_experiment_is_that_of_its_ensemble(experiment, tmp_path, capsys):
    root = shutil.copytree(experiment, tmp_path / "demo")
    shutil.copy(root / "ensemble/results.json", root)  # of the experiment's report
    assert main(["card", str(root)]) == 0
    num_open = len(FOR_A_PERSON)
    assert f"{num_open} are listed as open" in capsys.readouterr().out
    text, page = (root / "card.md").read_text(), (root / "card.html").read_text()
    for content in (text, page):
        for shown in (PURPOSE, "ensemble/config.yaml", "members/resnet/history.csv", OPEN,
                      "audit/abc/audit.json", "CLAIM 2024", "TRIPOD+AI",
                      "doi:10.1148/ryai.240300", "Metrics of groups"):  # fmt: skip
            assert shown in content, shown
        assert "secret" not in content
        assert str(tmp_path) not in content
    open_part = text[text.index(f"## {OPEN}") : text.index("## CLAIM 2024")]
    assert len(open_part.splitlines()) - 4 == num_open + open_part.endswith("\n\n")
    for wording in FOR_A_PERSON:
        assert re.search(rf"\| {re.escape(wording)} \| a person has to \|", open_part), wording
    rows = re.findall(r"^\| \d+ \|.*$", text.partition("## CLAIM 2024")[2], re.M)
    claim = rows[: len(CLAIM)]
    assert [row.split("|")[1].strip() for row in claim] == CLAIM


@pytest.mark.parametrize("files", ["/secret/a.csv", ["/secret/a.csv", "/secret/b.csv"]])
def test_a_card_names_files_without_their_folders(files, tmp_path):
    fractions = {"val": 0.1, "test": 0.2, "copies": "/secret/copies.csv"}
    arguments = {"files": files, "root": None, "patient": "person", "fractions": fractions}
    source = {"class_path": "datamodules.Table", "init_args": arguments}
    data = {"source": source, "fold": {"num_folds": 0}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": data}}))
    shown = data_source(Artifacts(tmp_path, {}))
    assert shown.startswith("Table: files a.csv")
    assert "patient person" in shown
    assert "secret" not in shown + partitions(Artifacts(tmp_path, {}))


def test_an_unfinished_experiment_has_no_card(experiment, tmp_path, capsys):
    shutil.copytree(experiment / "members/resnet", tmp_path / "members/resnet")
    assert main(["card", str(tmp_path)]) == 2
    assert "the experiment has no report yet; finish it with consilium experiment run" in (
        capsys.readouterr().err)  # fmt: skip


def test_another_folder_is_refused(tmp_path, capsys):
    assert main(["card", str(tmp_path)]) == 2
    assert f"{tmp_path}: is neither a run folder nor that of an experiment" in (
        capsys.readouterr().err)  # fmt: skip
