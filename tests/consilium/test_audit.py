import json
import re
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from consilium.cli.audit import run
from datamodules.phantoms.generate import PhantomSpec, write_dataset


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    return write_dataset(PhantomSpec("fracture", 30, 2, 64, 1), root)


@pytest.fixture
def folders(pictures, tmp_path):
    """Class folders within split folders, with one copy on both sides."""
    table = pd.read_csv(pictures / "manifest.csv", keep_default_na=False)
    for k, row in enumerate(table.itertuples()):
        split = "test" if row.patient < "p00010" else "train"
        target = tmp_path / "set" / split / row.label / f"{row.patient}_{k}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / row.path, target)
    original = next((tmp_path / "set/train/none").glob("*.png"))
    cv2.imwrite(str(tmp_path / "set/test/none/p99_0.png"), cv2.imread(str(original))[:, ::-1])
    return tmp_path / "set"


def test_a_leak_gives_exit_code_1_and_a_page_with_the_pair(folders, tmp_path, capsys):
    assert run([str(folders), "--patient", r"(p\d+)_", "-o", str(tmp_path / "out")]) == 1
    told = json.loads((tmp_path / "out/audit.json").read_text())
    assert told["leaks"] == 1
    assert told["findings"][0]["kind"] == "near copies"
    assert told["findings"][0]["matches"][0]["how"] == "mirrored"
    assert set(told["counts"]) == {"train", "test"}
    page = (tmp_path / "out/audit.html").read_text()
    assert "Leak: near copies" in page
    assert page.count("data:image/png") == 1
    gone = pd.read_csv(tmp_path / "out/quarantine.csv")
    assert gone["split"].tolist() == ["train"]
    assert "LEAK: 1 pairs (near copies) on two sides" in capsys.readouterr().out


def test_a_clean_table_gives_exit_code_0(pictures, tmp_path, capsys):
    table = pd.read_csv(pictures / "manifest.csv", keep_default_na=False)
    table["set"] = np.where(table["patient"] < "p00010", "test", "train")
    table["path"] = [str(pictures / name) for name in table["path"]]
    table.to_csv(tmp_path / "list.csv", index=False)
    assert run([str(tmp_path / "list.csv"), "-o", str(tmp_path / "out")]) == 0
    assert "0 kinds of leak" in capsys.readouterr().out


def test_a_folder_without_splits_says_what_cannot_be_seen(pictures, tmp_path):
    assert run([str(pictures), "-o", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out/audit.json").read_text())
    assert "no splits are given: leaks between splits cannot be seen" in told["notes"]


def test_files_of_which_none_can_be_read_are_named(tmp_path):
    (tmp_path / "gone.csv").write_text("path,label,split\n0.png,a,train\n1.png,b,test\n")
    assert run([str(tmp_path / "gone.csv"), "-o", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out/audit.json").read_text())
    assert "2 files that cannot be read" in told["findings"][0]["message"]


@pytest.fixture
def strange(tmp_path):
    """A folder whose manifest.csv calls everything by names of its own; one class is NA."""
    rng, rows = np.random.default_rng(0), []
    for at in range(12):
        cv2.imwrite(str(tmp_path / f"{at}.png"), rng.integers(0, 255, (32, 32), np.uint8))
        person = "ab" if at < 2 else f"p{at}"
        rows.append((f"{at}.png", ("NA", "None")[at % 2], ("train", "test")[at % 2], person))
    table = pd.DataFrame(rows, columns=["path", "finding", "side", "who"])
    table.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path


COLUMNS = ["--label", "finding", "--split", "side", "--patient", "who"]


def test_columns_that_are_named_hold_for_a_folders_own_table(strange, tmp_path):
    for target in (strange, strange / "manifest.csv"):
        assert run([str(target), *COLUMNS, "-o", str(tmp_path / "out")]) == 1
        told = json.loads((tmp_path / "out/audit.json").read_text())
        assert told["findings"][0]["message"].endswith("more than one split: ab")
        assert set(told["counts"]["train"]) == {"NA", "None", "patients"}
        assert told["patients"] == 11


@pytest.mark.parametrize(
    ("labels", "names", "note"),
    [
        (["1", "2"], ["1", "2"], ""),
        (["10", "9"], ["9", "10"], ""),
        (["0", "3", ""], ["0", "3"], "4 pictures have no label and are left out"),
        (["ill", "ill "], ["ill"], "6 labels have white space around them, which is not read"),
        (["Ill", "ill"], ["Ill", "ill"], "only capitals tell apart .*: 'Ill' and 'ill'"),
    ],
)
def test_the_classes_are_the_labels_that_occur(strange, tmp_path, labels, names, note):
    table = pd.read_csv(strange / "manifest.csv").drop(columns="side")
    table["finding"] = [labels[at % len(labels)] for at in range(len(table))]
    table = table.rename(columns={"finding": " Label", "path": "PATH", "who": "Patient_ID"})
    table.to_csv(strange / "manifest.csv", index=False, sep=";")
    assert run([str(strange), "-o", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out/audit.json").read_text())
    assert [name for name in told["counts"]["train"] if name != "patients"] == names
    assert re.search(note, "\n".join(told["notes"]))
    assert ("label" in "".join(told["notes"])) == bool(note)


def test_columns_are_refused_where_there_is_no_table(folders):
    with pytest.raises(ValueError, match=r"--label --split: no columns in .*set; a TABLE has them"):
        run([str(folders), "--label", "finding", "--split", "side"])


@pytest.mark.parametrize("option", ["--label", "--path", "--split", "--patient"])
def test_columns_are_refused_beside_a_config(config, option):
    with pytest.raises(ValueError, match=f"{option}: the config says it; for a FOLDER or TABLE"):
        run(["--config", str(config), option, "x"])


@pytest.mark.parametrize(
    ("patient", "words"),
    [
        ("p[0-9]", "patient: 'p[0-9]' has no group"),
        ("(p", "patient: '(p' is no regular expression"),
        ("(q)", "patient is '(q)', which does not match ['"),
    ],
)
@pytest.mark.parametrize("folder", ["set", "set/train", "set/train/none"])
def test_an_expression_that_says_no_patient_is_refused(folders, patient, words, folder):
    with pytest.raises(ValueError, match=re.escape(words)):
        run([str(folders.parent / folder), "--patient", patient])


def test_a_picture_beside_the_class_folders_is_named(folders):
    cv2.imwrite(str(folders / "train/stray.png"), np.zeros((8, 8), np.uint8))
    for folder, stray in ((folders, "train/stray.png"), (folders / "train", "stray.png")):
        with pytest.raises(ValueError, match=rf"\['{stray}'\] lie in no class folder"):
            run([str(folder)])


@pytest.fixture
def config(tmp_path):
    (tmp_path / "data.yaml").write_text(
        "class_path: datamodules.ImageDataModule\n"
        "init_args:\n"
        "  source:\n"
        "    class_path: datamodules.Phantoms\n"
        f"    init_args: {{num_patients: 30, images_per_patient: 2, image_size: 64, root: {tmp_path}/phantoms}}\n"
        "  class_names: [none, simple, comminuted]\n"
        "  preprocess: {size: 64}\n"
        "  augment: fracture\n"
    )
    (tmp_path / "member.yaml").write_text("data: data.yaml\nmodel: {class_path: x}\n")
    return tmp_path / "member.yaml"


def test_a_config_is_audited_and_its_augmentations_shown(config, tmp_path):
    assert run(["--config", str(config), "-o", str(tmp_path / "out")]) == 0
    assert run(["--config", str(config), "--augmentations", "-o", str(tmp_path / "out")]) == 0
    sheet = cv2.imread(str(tmp_path / "out/augmentations.png"))
    cells = sheet.reshape(6, 168, 8, 168, 3).swapaxes(1, 2)
    assert len({cell.tobytes() for row in cells for cell in row}) > 40


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="either a FOLDER or TABLE, or --config"):
        run([])
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        run([str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match=r"gone\.yaml: no such config"):
        run(["--config", str(tmp_path / "gone.yaml")])
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"t\.csv: --path must name the column"):
        run([str(tmp_path / "t.csv")])
    (tmp_path / "t.csv").write_text("path,label\n")
    with pytest.raises(ValueError, match=r"t\.csv: the table has no rows"):
        run([str(tmp_path / "t.csv")])
