"""Check a dataset for leaks, duplicates, corrupt files and confounds before training.

The dataset is a folder of images (one folder per class, with or without train, val and test
folders), a CSV or Parquet table, or the data of a config. Writes audit.html with the pairs of
images side by side, audit.json, and quarantine.csv: the samples to exclude so that no leak remains.
The exit code is 1 if there is a leak (a patient or an image in more than one split), else 0.
"""

import argparse
from pathlib import Path

from consilium.cli.options import add_dataset_arguments
from consilium.inference import audit_report, data_config
from datamodules.audit.audit import Audit, audit_manifest
from datamodules.manifest import Manifest
from evaluation.files import write_bytes

EXAMPLES = """\
examples:
  consilium audit data/chest --patient '(p[0-9]+)_'
  consilium audit labels.csv --label diagnosis --patient site,patient_id
  consilium audit --config configs/data/fracture.yaml --augmentations
"""


def run(options: argparse.Namespace) -> int:
    """Audits a dataset; returns 1 if it has a leak, else 0."""
    manifest, name = _load(options)
    folder = options.output or Path("runs") / f"audit-{name}"
    if options.augmentations:
        data = data_config.load_datamodule(options.config) if options.config else None
        write_bytes(folder / "augmentations.png", audit_report.augmentation_sheet(manifest, data))
        print(f"augmentations: {folder / 'augmentations.png'}")
        return 0
    audit = audit_manifest(manifest)
    audit_report.write_audit_report(audit, folder, name)
    _print_issues(audit)
    print(f"report: {folder / audit_report.PAGE}")
    return 1 if audit.leaks else 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    add_dataset_arguments(parser, nargs="?")
    add = parser.add_argument
    add("--config", action="append", default=[], help="config with the data; may be repeated")
    add("-o", "--output", type=Path, metavar="DIR", help="output folder (runs/audit-NAME)")
    add("--augmentations", action="store_true", help="only write a sheet of augmented images")


def _load(options: argparse.Namespace) -> tuple[Manifest, str]:
    if (options.target is None) == (not options.config):
        raise ValueError("give either a FOLDER or TABLE, or --config FILE")
    columns = {role: getattr(options, role) for role in data_config.COLUMN_ALIASES}
    if not options.config:
        return data_config.load_target(options.target, columns)
    given = [f"--{role}" for role, column in columns.items() if column]
    if given:
        raise ValueError(f"{' '.join(given)}: only for a FOLDER or TABLE; a config has it inside")
    data = data_config.load_datamodule(options.config)
    data.source.prepare()
    return data.load_manifest(), Path(options.config[-1]).stem


def _print_issues(audit: Audit) -> None:
    for issue in audit.issues:
        print(f"{'LEAK' if issue.is_leak else 'note'}: {issue.message}")
    for confound in audit.confounds:
        if confound.is_suspect:
            target = f"class {confound.class_name}" if confound.class_name else "class"
            print(f"note: {confound.name} alone predicts the {target}: "
                  f"{confound.measure} {confound.value:.3f}")  # fmt: skip
    for note in audit.manifest.notes:
        print(f"note: {note}")
    print(f"{len(audit.manifest.table):,} files, {len(audit.leaks)} kinds of leak")
