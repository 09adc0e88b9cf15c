import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from consilium.cli.main import run
from consilium.inference.data_config import load_datamodule
from datamodules.audit.file_stats import NUMBERS
from datamodules.phantoms.generate import PhantomSpec, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    return write_dataset(PhantomSpec("fracture", 12, 2, 64, 1), root)


@pytest.fixture
def folders(dataset, tmp_path):
    """Class folders in split folders, with one mirrored copy in another split."""
    table = pd.read_csv(dataset / "manifest.csv", keep_default_na=False)
    for k, row in enumerate(table.itertuples()):
        split = "test" if row.patient < "p00004" else "train"
        target = tmp_path / "set" / split / row.label / f"{row.patient}_{k}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dataset / row.path, target)
    original = next((tmp_path / "set/train/none").glob("*.png"))
    cv2.imwrite(str(tmp_path / "set/test/none/p99_0.png"), cv2.imread(str(original))[:, ::-1])
    return tmp_path / "set"


def test_a_leak_gives_exit_code_1_and_a_page_with_the_pair(folders, tmp_path, capsys):
    output = tmp_path / "an out"
    assert run(["audit", str(folders), "--patient", r"(p\d+)_", "-o", str(output)]) == 1
    printed = capsys.readouterr().out
    content = json.loads((output / "audit.json").read_text())
    assert content["leaks"] == 1
    assert content["issues"][0]["kind"] == "near duplicates"
    assert content["issues"][0]["matches"][0]["reason"] == "mirrored"
    assert set(content["counts"]) == {"train", "test"}
    page = (output / "audit.html").read_text()
    assert "Leak: near duplicates" in page
    assert "1 of 1 pairs" not in page
    assert page.count("data:image/png") == 1
    quarantine = pd.read_csv(output / "quarantine.csv")
    assert quarantine["split"].tolist() == ["train"]
    assert "LEAK: 1 pair of near duplicates in different splits" in printed
    # the report begins with the number of test images that occur in training
    count = len(list((folders / "test").glob("*/*.png")))
    first = f"1 of {count} test images also occurs in training"
    lines = printed.splitlines()
    assert next(line for line in lines if line and "%" not in line).startswith(first)
    assert page.index(first) < page.index("1 kind of leak")
    expected = {"split": "test", "images": count, "copied": 1, "same_patient": 0}
    assert content["overlaps"] == [expected]


@pytest.mark.exhaustive
def test_what_to_do_next_is_given_as_commands(folders, config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(["audit", str(folders), "--patient", r"(p\d+)_", "-o", "an out"])
    (command,) = [line for line in capsys.readouterr().out.splitlines() if "init" in line]
    assert command.startswith(
        f"next: consilium init {folders} --patient '(p\\d+)_' --audit 'an out' -o "
    )
    assert "consilium init" in (tmp_path / "an out/audit.html").read_text()
    command = command.partition("consilium ")[2].partition("  #")[0]
    assert run(shlex.split(command)) == 0
    data = load_datamodule(["set-experiment/data.yaml"])
    assert run(["audit", "--config", "set-experiment/data.yaml", "-o", "again"]) == 0
    assert len(data.load_manifest().table) == len(list(folders.rglob("*.png"))) - 1


def test_unknown_patients_have_their_own_next_command(folders, capsys):
    run(["audit", str(folders)])
    assert f"next: consilium audit {folders} --patient REGEX" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_a_leak_of_a_config_is_answered_with_the_setting_that_excludes_it(
    folders, tmp_path, capsys
):
    classes = sorted(path.name for path in (folders / "train").iterdir())
    (tmp_path / "data.yaml").write_text(
        "class_path: datamodules.ImageDataModule\n"
        "init_args:\n"
        "  source:\n"
        "    class_path: datamodules.Folders\n"
        f"    init_args: {{root: {folders}, patient: '(p[0-9]+)_'}}\n"
        f"  class_names: {classes}\n"
    )
    (tmp_path / "member.yaml").write_text("data: data.yaml\nmodel: {class_path: x}\n")
    quarantine = f"{tmp_path}/out/quarantine.csv"
    for name, answer in (
        ("data", f"edit {tmp_path}/data.yaml, init_args: set exclude: {quarantine}"),
        ("member", f"consilium fit --config {tmp_path}/member.yaml "
                   f"--data.init_args.exclude {quarantine}"),
    ):  # fmt: skip
        file = str(tmp_path / f"{name}.yaml")
        assert run(["audit", "--config", file, "-o", str(tmp_path / "out")]) == 1
        assert f"next: {answer}  # without 1 image" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_what_the_config_excludes_already_is_repeated_in_the_quarantine(folders, tmp_path, capsys):
    classes = sorted(path.name for path in (folders / "train").iterdir())
    first = str(next((folders / "test/none").glob("p0*.png")).relative_to(folders))
    (tmp_path / "out").mkdir()
    file = tmp_path / "out/quarantine.csv"
    file.write_text(f"id,reason\n{first},blurred\n")
    source = {"class_path": "datamodules.Folders", "init_args": {"root": str(folders)}}
    source["init_args"]["patient"] = "(p[0-9]+)_"
    init_args = {"source": source, "class_names": classes, "exclude": str(file)}
    data = {"class_path": "datamodules.ImageDataModule", "init_args": init_args}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    arguments = ["audit", "--config", str(tmp_path / "data.yaml"), "-o", str(tmp_path / "out")]
    assert run(arguments) == 1
    assert f"without those of {file}, which it repeats" in capsys.readouterr().out
    quarantine = pd.read_csv(file)
    assert quarantine["reason"].tolist() == ["blurred", "near duplicates"]
    assert run(arguments) == 0
    assert pd.read_csv(file)["reason"].tolist() == ["blurred", "near duplicates"]


def test_every_unreadable_file_is_on_the_page_and_in_the_quarantine(tmp_path):
    lines = [f"{k}.png,{'ab'[k % 2]},{('train', 'test')[k % 2]}" for k in range(6)]
    (tmp_path / "gone.csv").write_text("\n".join(["path,label,split", *lines]))
    (tmp_path / "0.png").touch()
    run(["audit", str(tmp_path / "gone.csv"), "-o", str(tmp_path / "out")])
    page = (tmp_path / "out/audit.html").read_text()
    quarantine = pd.read_csv(tmp_path / "out/quarantine.csv")
    reasons = ["the file is empty", *["No such file or directory"] * 5]
    for k, reason in enumerate(reasons):
        assert f"{tmp_path}/{k}.png: {reason}" in page
        assert quarantine["detail"][k] == f"{tmp_path}/{k}.png: {reason}"


def test_suspects_are_printed_with_interval_and_count(tmp_path, capsys):
    rng, rows = np.random.default_rng(0), []
    for k in range(60):
        image = rng.integers(0, 255, (32, 32 + 8 * (k % 2)), np.uint8)
        cv2.imwrite(str(tmp_path / f"{k}.png"), image)
        rows.append((f"{k}.png", "ab"[k % 2], ("old", "new")[k % 2]))
    table = pd.DataFrame(rows, columns=["path", "label", "bytes"])
    table.to_csv(tmp_path / "list.csv", index=False)
    assert run(["audit", str(tmp_path / "list.csv"), "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "note: image width alone predicts the class (AUC 1.000 (0.9" in out
    assert ", 60 images)" in out
    assert "note: bytes (column) alone determines the class" in out
    assert out.index("note: image width") < out.index("note: bytes (column)")
    page = (tmp_path / "out/audit.html").read_text()
    assert all(f"<td>{label}</td>" in page for label in NUMBERS.values())
    assert "<td>std</td>" not in page
    table[:4].to_csv(tmp_path / "list.csv", index=False)
    assert run(["audit", str(tmp_path / "list.csv"), "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "AUC" not in out
    assert "note: confounds are not measured: fewer than two classes have 10 patients" in out


def test_a_clean_table_gives_exit_code_0(dataset, tmp_path, capsys):
    table = pd.read_csv(dataset / "manifest.csv", keep_default_na=False)
    table["set"] = np.where(table["patient"] < "p00004", "test", "train")
    table["path"] = [str(dataset / name) for name in table["path"]]
    table.to_csv(tmp_path / "list.csv", index=False)
    assert run(["audit", str(tmp_path / "list.csv"), "-o", str(tmp_path / "out")]) == 0
    assert "0 kinds of leak" in capsys.readouterr().out


def test_a_dataset_without_splits_gives_a_note(dataset, tmp_path):
    assert run(["audit", str(dataset), "-o", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/audit.json").read_text())
    assert "the dataset has no splits: leaks between splits cannot be detected" in content["notes"]


def test_a_table_with_an_empty_split_column_has_no_splits(dataset, tmp_path):
    table = pd.read_csv(dataset / "manifest.csv", keep_default_na=False).assign(split="")
    table["path"] = [str(dataset / name) for name in table["path"]]
    table.to_csv(tmp_path / "list.csv", index=False)
    assert run(["audit", str(tmp_path / "list.csv"), "-o", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/audit.json").read_text())
    assert "the dataset has no splits: leaks between splits cannot be detected" in content["notes"]
    assert set(content["counts"]) == {"train"}


def test_a_dataset_of_unreadable_files_does_not_pass(tmp_path, capsys):
    (tmp_path / "gone.csv").write_text("path,label,split\n0.png,a,train\n1.png,b,test\n")
    assert run(["audit", str(tmp_path / "gone.csv"), "-o", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "2 files, 0 kinds of leak; none of them can be read\n" in printed
    assert "consilium init" not in printed
    content = json.loads((tmp_path / "out/audit.json").read_text())
    assert "2 unreadable files" in content["issues"][0]["message"]


@pytest.mark.exhaustive
def test_an_audit_is_named_after_the_folder_and_the_table_or_config(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = pd.read_csv(dataset / "manifest.csv", keep_default_na=False)
    table["path"] = [str(dataset / name) for name in table["path"]]
    for name in ("first", "second"):
        Path(name).mkdir()
        table[:20].to_csv(f"first/{name}.csv", index=False)
        table[:20].to_csv(f"{name}/manifest.csv", index=False)
        init_args = {
            "num_patients": 10,
            "images_per_patient": 1,
            "root": str(tmp_path / "phantoms"),
        }
        source = {"class_path": "datamodules.Phantoms", "init_args": init_args}
        init_args = {"source": source, "class_names": ["none", "simple", "comminuted"]}
        data = {"class_path": "datamodules.ImageDataModule", "init_args": init_args}
        Path(name, "data.yaml").write_text(yaml.safe_dump(data))
    targets = ("first/first.csv", "first/second.csv", "first/manifest.csv", "second")
    for arguments in (*([name] for name in targets), ["--config", "second/data.yaml"]):
        run(["audit", *arguments])
    folders = ("first-first", "first-second", "first", "second", "second-data")
    assert {file.name for file in Path("runs").iterdir()} == {f"audit-{name}" for name in folders}


def test_a_table_without_a_column_of_labels_gives_a_note(dataset, tmp_path, capsys):
    table = pd.read_csv(dataset / "manifest.csv", keep_default_na=False)
    table["path"] = [str(dataset / name) for name in table["path"]]
    table.rename(columns={"label": "finding"})[:20].to_csv(tmp_path / "list.csv", index=False)
    assert run(["audit", str(tmp_path / "list.csv"), "-o", str(tmp_path / "out")]) == 0
    message = "no column was recognized as the label; --label names it: ['"
    assert message in capsys.readouterr().out
    notes = json.loads((tmp_path / "out/audit.json").read_text())["notes"]
    assert any(note.startswith(message) and "'finding'" in note for note in notes)


@pytest.fixture
def unusual(tmp_path):
    """A folder whose manifest.csv has unusual column names; one class is NA."""
    rng, rows = np.random.default_rng(0), []
    for k in range(12):
        cv2.imwrite(str(tmp_path / f"{k}.png"), rng.integers(0, 255, (32, 32), np.uint8))
        patient = "ab" if k < 2 else f"p{k}"
        rows.append((f"{k}.png", ("NA", "None")[k % 2], ("train", "test")[k % 2], patient))
    table = pd.DataFrame(rows, columns=["path", "finding", "side", "who"])
    table.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path


COLUMNS = ["--label", "finding", "--split", "side", "--patient", "who"]


def test_given_columns_are_used_for_the_table_of_a_folder(unusual, tmp_path):
    for target in (unusual, unusual / "manifest.csv"):
        assert run(["audit", str(target), *COLUMNS, "-o", str(tmp_path / "out")]) == 1
        content = json.loads((tmp_path / "out/audit.json").read_text())
        assert content["issues"][0]["message"].endswith("more than one split: ab")
        assert set(content["counts"]["train"]) == {"NA", "None", "patients"}
        assert content["patients"] == 11


@pytest.mark.parametrize(
    ("labels", "names", "note"),
    [
        (["1", "2"], ["1", "2"], ""),
        (["10", "9"], ["9", "10"], ""),
        (["0", "3", ""], ["0", "3"], "4 images have no label and are left out"),
        (
            ["ill", "ill "],
            ["ill"],
            "6 labels have stray white space or variant characters, which are removed",
        ),
        (["Ill", "ill"], ["Ill", "ill"], "differ only in case .*: 'Ill' and 'ill'"),
    ],
)
def test_the_classes_are_the_labels_that_occur(unusual, tmp_path, labels, names, note):
    table = pd.read_csv(unusual / "manifest.csv").drop(columns="side")
    table["finding"] = [labels[k % len(labels)] for k in range(len(table))]
    table = table.rename(columns={"finding": " Label", "path": "PATH", "who": "Patient_ID"})
    table.to_csv(unusual / "manifest.csv", index=False, sep=";")
    assert run(["audit", str(unusual), "-o", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/audit.json").read_text())
    assert [name for name in content["counts"]["train"] if name != "patients"] == names
    assert re.search(note, "\n".join(content["notes"]))
    assert ("label" in "".join(content["notes"])) == bool(note)


def test_columns_are_refused_without_a_table(folders):
    with pytest.raises(
        ValueError, match=r"--label --split: .*set is no table and has no manifest.csv"
    ):
        run(["audit", str(folders), "--label", "finding", "--split", "side"])


@pytest.mark.parametrize("option", ["--label", "--path", "--split", "--patient"])
def test_columns_are_refused_with_a_config(config, option):
    with pytest.raises(ValueError, match=f"{option}: only for a FOLDER or TABLE"):
        run(["audit", "--config", str(config), option, "x"])


@pytest.mark.parametrize(
    ("patient", "message"),
    [
        ("p[0-9]", "patient: 'p[0-9]' has no group"),
        ("(p", "patient: '(p' is no regular expression"),
        ("(q)", "patient is '(q)', which does not match ['"),
    ],
)
@pytest.mark.parametrize("folder", ["set", "set/train", "set/train/none"])
def test_an_expression_that_does_not_give_the_patient_is_refused(folders, patient, message, folder):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(["audit", str(folders.parent / folder), "--patient", patient])


def test_an_image_outside_of_the_class_folders_is_named(folders):
    cv2.imwrite(str(folders / "train/stray.png"), np.zeros((8, 8), np.uint8))
    for folder, stray in ((folders, "train/stray.png"), (folders / "train", "stray.png")):
        with pytest.raises(ValueError, match=rf"\['{stray}'\] are not in a class folder"):
            run(["audit", str(folder)])


@pytest.fixture
def config(tmp_path):
    (tmp_path / "data.yaml").write_text(
        "class_path: datamodules.ImageDataModule\n"
        "init_args:\n"
        "  source:\n"
        "    class_path: datamodules.Phantoms\n"
        f"    init_args: {{num_patients: 12, image_size: 64, root: {tmp_path}/phantoms}}\n"
        "  class_names: [none, simple, comminuted]\n"
        "  preprocess: {size: 64}\n"
        "  augment: fracture\n"
    )
    (tmp_path / "member.yaml").write_text("data: data.yaml\nmodel: {class_path: x}\n")
    return tmp_path / "member.yaml"


def test_a_config_is_audited_and_its_augmentations_are_written(config, tmp_path):
    assert run(["audit", "--config", str(config), "-o", str(tmp_path / "out")]) == 0
    args = ["audit", "--config", str(config), "--augmentations", "-o", str(tmp_path / "out")]
    assert run(args) == 0
    sheet = cv2.imread(str(tmp_path / "out/augmentations.png"))
    cells = sheet.reshape(6, 168, 8, 168, 3).swapaxes(1, 2)
    assert len({cell.tobytes() for row in cells for cell in row}) > 40


def test_wrong_input_is_an_error_with_its_name(tmp_path):
    with pytest.raises(ValueError, match="either a FOLDER or TABLE, or --config"):
        run(["audit"])
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        run(["audit", str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match=r"gone\.yaml: no such config"):
        run(["audit", "--config", str(tmp_path / "gone.yaml")])
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"t\.csv: --path must name the column"):
        run(["audit", str(tmp_path / "t.csv")])
    (tmp_path / "t.csv").write_text("path,label\n")
    with pytest.raises(ValueError, match=r"t\.csv: the table has no rows"):
        run(["audit", str(tmp_path / "t.csv")])
    (tmp_path / "a.JPG").write_text("no image")
    with pytest.raises(ValueError, match=r"a\.JPG: is an image; give a folder of images"):
        run(["audit", str(tmp_path / "a.JPG")])
