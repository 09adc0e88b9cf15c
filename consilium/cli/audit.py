"""Check a dataset for leaks, duplicates, corrupt files and confounds before training.

The dataset is a folder of images (one folder per class, with or without train, val and test
folders), a CSV or Parquet table, or the data of a config. Writes audit.html with the pairs of
images side by side, audit.json, and quarantine.csv: the samples to exclude so that no leak remains.
What to do next is printed as commands. Another audit in the same folder goes on where one was
interrupted, and reads no image again that has not changed.
With --labels, the labels of a finished experiment (best one with folds) or run are ranked by how
much its models contradict them on images that they were not trained on, and the share of wrong
labels is estimated: labels.html, and labels.csv to correct them in, which --apply reads.
The exit code is 1 if there is a leak (a patient or an image in more than one split) or no file can
be read, else 0.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from consilium.cli.options import add_dataset_arguments

if TYPE_CHECKING:
    from datamodules.audit.audit import Audit
    from datamodules.datamodule import ImageDataModule
    from datamodules.manifest import Manifest

EXAMPLES = """\
examples:
  consilium audit data/chest --patient '(p[0-9]+)_'
  consilium audit labels.csv --label diagnosis --patient site,patient_id
  consilium audit --config configs/data/fracture.yaml --augmentations
  consilium audit --labels runs/mine
  consilium audit --labels runs/mine --apply corrected.csv -o relabeled.csv
"""


def run(options: argparse.Namespace) -> int:
    """Audits a dataset; returns 1 if it has a leak or no file that can be read, else 0."""
    from consilium.inference import audit_report
    from datamodules.audit.audit import audit_manifest
    from evaluation.files import write_bytes

    if options.labels:
        return _run_label_audit(options)
    manifest, name, data = _load(options)
    excluded = data.exclude if data is not None else None
    folder = options.output or Path("runs") / f"audit-{name}"
    if options.augmentations:
        write_bytes(folder / "augmentations.png", audit_report.augmentation_sheet(manifest, data))
        print(f"augmentations: {folder / 'augmentations.png'}")
        return 0
    audit = audit_manifest(manifest, folder)
    dataset = _dataset_arguments(options)
    commands = audit_report.next_commands(audit, folder, name, dataset, excluded)
    audit_report.write_audit_report(audit, folder, name, commands, excluded)
    _print_issues(audit)
    for command in commands:
        print(f"next: {command}")
    print(f"report: {folder / audit_report.PAGE}")
    return 1 if audit.leaks or audit.is_unreadable else 0


def _run_label_audit(options: argparse.Namespace) -> int:
    """Ranks the labels of a run or experiment, or writes a table with corrected labels."""
    from consilium.inference import label_report
    from evaluation.files import write_text
    from evaluation.reports.html import format_percent

    folder: Path = options.labels
    if options.target or options.config:
        raise ValueError("--labels: the run has the dataset; give no FOLDER, TABLE or --config")
    runs = label_report.run_folders(folder)
    manifest, has_splits = label_report.load_manifest_of(runs[0])
    if options.apply:
        table = label_report.apply_corrections(manifest, options.apply, has_splits)
        output = options.output or folder / "relabeled.csv"
        write_text(output, table.to_csv(index=False))
        changed = int((table[label_report.BEFORE] != "").sum())
        left_out = len(manifest.table) - len(table)
        print(f"{changed} labels changed, {left_out} images left out")
        print(f"table: {output}")
        return 0
    audit = label_report.audit_run_labels(runs)
    output = options.output or folder
    label_report.write_label_report(audit, manifest, output, folder.name)
    print(f"wrong labels: about {format_percent(audit.wrong)}")
    print(f"labels to correct: {output / label_report.CSV}")
    print(f"report: {output / label_report.PAGE}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    add_dataset_arguments(parser, nargs="?")
    add = parser.add_argument
    add("--config", action="append", default=[], help="config with the data; may be repeated")
    add("-o", "--output", type=Path, metavar="DIR", help="output folder (runs/audit-FOLDER-FILE)")
    help_ = "rank the labels of its dataset by their doubtfulness"
    add("--labels", type=Path, metavar="RUN|EXPERIMENT", help=help_)
    help_ = "with --labels: write a table with the corrections in a filled labels.csv"
    add("--apply", type=Path, metavar="CSV", help=help_)
    add("--augmentations", action="store_true", help="only write a sheet of augmented images")


def _load(options: argparse.Namespace) -> "tuple[Manifest, str, ImageDataModule | None]":
    """The manifest, the dataset's name, and the data module if it is given by --config."""
    from consilium.inference import data_config

    if (options.target is None) == (not options.config):
        raise ValueError("give either a FOLDER or TABLE, or --config FILE")
    columns = {role: getattr(options, role) for role in data_config.COLUMN_ALIASES}
    if not options.config:
        return *data_config.load_target(options.target, columns), None
    given = [f"--{role}" for role, column in columns.items() if column]
    if given:
        raise ValueError(f"{' '.join(given)}: only for a FOLDER or TABLE; a config has it inside")
    data = data_config.load_datamodule(options.config)
    data.source.prepare()
    return data.load_manifest(), data_config.name_of_file(Path(options.config[-1])), data


def _dataset_arguments(options: argparse.Namespace) -> list[str]:
    """The arguments that name the dataset, as they are given to other commands."""
    from consilium.inference import data_config

    if options.config:
        return [text for file in options.config for text in ("--config", file)]
    columns = ((f"--{role}", getattr(options, role)) for role in data_config.COLUMN_ALIASES)
    return [str(options.target), *(text for pair in columns if pair[1] for text in pair)]


def _print_issues(audit: "Audit") -> None:
    """Prints overlaps of the splits, issues, notes, and the number of leaks."""
    from consilium.inference import audit_report

    for sentence in audit_report.overlap_sentences(audit):
        print(sentence)
    for issue in audit.issues:
        print(f"{'LEAK' if issue.is_leak else 'note'}: {issue.message}")
    for note in audit_report.audit_notes(audit):
        print(f"note: {note}")
    print(audit_report.leak_summary(audit))
