"""The labels of a dataset, the most doubtful first: a page, and a CSV file to correct them in."""

from pathlib import Path

import pandas as pd

from consilium.inference.data_config import load_datamodule
from datamodules.images import ImageError, read_thumbnail
from datamodules.manifest import Manifest, read_table
from evaluation.files import write_text
from evaluation.label_audit import SUREST, LabelAudit, audit_labels
from evaluation.predictions import PredictionTable
from evaluation.reports.html import Section, Table, Text, Thumbnails, format_percent, write_report
from evaluation.results import ExperimentFolder

PAGE, CSV = "labels.html", "labels.csv"
NEW_LABEL, EXCLUDE, BEFORE = "new_label", "exclude", "label_before"
MAX_IMAGES, MAX_ROWS = 60, 300  # on the page
HOW = (
    "A label is doubtful if models that were not trained on the image prefer another class. "
    f"Correct labels in the column {NEW_LABEL} of {CSV} (a class, or {EXCLUDE}), then write a new "
    "table with --apply."
)
SHARE_NOTE = (
    f"The share of wrong labels is measured on the {SUREST:.0%} of each predicted class where the "
    "prediction is surest, since models hardly err there. If annotators err less on clear images "
    "than on others, it is too low."
)
COLUMNS = {  # of the table on the page: titles of the columns of the ranking
    "id": "image", "label": "label", "suggestion": "prediction", "p_label": "p of the label",
    "p_suggestion": "p of the prediction", "agreement": "models that predict it",
}  # fmt: skip


def run_folders(folder: Path) -> list[Path]:
    """The run folders of all members of an experiment, or the run folder itself."""
    if not (folder / "members").is_dir():
        return [folder]
    experiment = ExperimentFolder(folder)
    return [experiment.run(name) for name in experiment.members]


def audit_run_labels(runs: list[Path]) -> LabelAudit:
    """The audit of the labels of val and test; with folds these are all images."""
    files = [run / "predictions" / f"{split}.parquet" for run in runs for split in ("val", "test")]
    tables = [PredictionTable.read(file) for file in files if file.is_file()]
    if not tables:
        raise ValueError(f"--labels {runs[0]}: no predictions of val or test; run consilium test")
    return audit_labels(tables)


def write_label_report(audit: LabelAudit, manifest: Manifest, folder: Path, name: str) -> None:
    """Writes labels.csv, with an empty column for corrections, and labels.html."""
    paths = manifest.table.set_index("id")["path"]
    ranking = audit.ranking.assign(**{NEW_LABEL: ""}, path=paths.reindex(audit.ranking["id"]).array)
    write_text(folder / CSV, ranking.to_csv(index=False))
    write_report(folder / PAGE, f"Labels of {name}", label_sections(ranking, audit, manifest))


def label_sections(ranking: pd.DataFrame, audit: LabelAudit, manifest: Manifest) -> list[Section]:
    """The sections of the page: the share of wrong labels, the most doubtful images, a table."""
    doubtful = ranking[ranking["suggestion"] != ranking["label"]]
    checked = f"{len(ranking):,} of {len(manifest.table):,} labels were checked"
    contradicted = f"{len(doubtful):,} of them are not the most probable class"
    rows = [tuple(row) for row in doubtful[[*COLUMNS]].head(MAX_ROWS).to_numpy().tolist()]
    return [
        Text(f"About {format_percent(audit.wrong)} of the labels are wrong.", lead=True),
        Text(f"{checked}; {contradicted}. {HOW}"),
        _thumbnails(doubtful.head(MAX_IMAGES)),
        Table([*COLUMNS.values()], rows, f"The first {len(rows)} doubtful labels", SHARE_NOTE),
    ]


def _thumbnails(ranking: pd.DataFrame) -> Thumbnails:
    """The images of the ranking that can be read, with label and prediction."""
    images, captions = [], []
    for row in ranking.to_dict("records"):
        try:
            images.append(read_thumbnail(Path(row["path"])))
        except ImageError:
            continue
        label, suggestion = (f"{row[c]} {row[f'p_{c}']:.2f}" for c in ("label", "suggestion"))
        captions.append(f"{row['id']}\nlabel: {label}\nmodels: {suggestion}")
    return Thumbnails(images, captions)


def apply_corrections(manifest: Manifest, file: Path, has_splits: bool) -> pd.DataFrame:
    """The table of the manifest with the corrected labels of a filled CSV file.

    The column `label_before` has the label that a correction replaced. Without `has_splits`, the
    splits are those of a cross-validation and are left out.
    """
    given, names = read_table(file), manifest.class_names
    if missing := {"id", NEW_LABEL} - set(given):
        raise ValueError(f"--apply {file}: no column {min(missing)!r}; it has {list(given)}")
    new = given[given[NEW_LABEL].str.strip() != ""].set_index("id")[NEW_LABEL].str.strip()
    allowed, known = [*names, EXCLUDE], set(manifest.table["id"])
    for name, label in new.items():
        if label not in allowed:
            raise ValueError(f"--apply {file}: {name}: {label!r} is not one of {allowed}")
        if name not in known:
            raise ValueError(f"--apply {file}: {name!r} is no image of the dataset")
    if repeated := new.index[new.index.duplicated()].tolist():
        raise ValueError(f"--apply {file}: two corrections of {repeated[0]!r}")
    table = manifest.table.assign(
        label=[names[k] if k >= 0 else "" for k in manifest.table["label"]]
    )
    corrected = table["id"].map(new)
    is_changed = corrected.notna() & (corrected != table["label"])
    table[BEFORE] = table["label"].where(is_changed, "")
    table["label"] = corrected.where(is_changed, table["label"])
    table = table[table["label"] != EXCLUDE]
    return table.drop(columns=["id", *([] if has_splits else ["split"])])


def load_manifest_of(run: Path) -> tuple[Manifest, bool]:
    """The manifest of a run's data, and whether its splits are those of the dataset."""
    data = load_datamodule([str(run / "config.yaml")])
    data.source.prepare()
    return data.load_manifest(), data.fold.num_folds == 0
