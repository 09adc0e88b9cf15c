"""Write config files for your dataset: the data, several networks and their ensemble.

The dataset is a folder of images (one folder per class, with or without train, val and test
folders), or a CSV or Parquet table with one row per image. Writes DIR/data.yaml and DIR/DIR.yaml,
an experiment that can be run at once; both are a dozen lines to edit. Splits that the dataset lacks
are made by patient, and copies of one image get the same split. The dataset is audited, and samples
that leak between splits or cannot be read are listed in DIR/quarantine.csv and excluded. An image
that has not changed since `consilium audit` is not read again.

With --weights, the experiment has a linear probe of each pretrained network, and fine-tunes the
largest ones that fit into --minutes on this machine. Without, it trains three small networks.
"""

import argparse
import shlex
from pathlib import Path

from consilium.cli.options import add_dataset_arguments, positive_float, positive_int

EXAMPLES = """\
examples:
  consilium init labels.csv --patient patient_id --size 224 -o mydata
  consilium init labels.csv --weights weights/ --minutes 30 -o mydata
  consilium experiment run mydata/mydata.yaml
"""


def run(options: argparse.Namespace) -> int:
    """Writes the config files; returns 0."""
    from consilium.inference import audit_report, data_config
    from consilium.inference.starter_configs import (
        DATA_FILE,
        check_dataset,
        experiment_file,
        write_configs,
    )
    from datamodules.audit.audit import audit_manifest
    from datamodules.audit.issues import CONFLICT

    target, folder = options.target, options.output
    columns = {role: getattr(options, role) for role in data_config.COLUMN_ALIASES}
    manifest, name = data_config.load_target(target, columns)
    check_dataset(folder, target, manifest)
    candidates = []
    if options.weights:
        from consilium.inference.starter_plan import find_candidates

        candidates = find_candidates(options.weights, manifest.table["path"].tolist())
    audit_folder = options.audit or Path("runs") / f"audit-{name}"
    audit = audit_manifest(manifest, audit_folder)
    next_command = f"consilium experiment run {shlex.quote(str(experiment_file(folder)))}"
    audit_report.write_audit_report(audit, audit_folder, name, [next_command])
    quarantine = audit.quarantine()
    if options.keep_conflicts:
        quarantine = quarantine[quarantine["reason"] != CONFLICT]
    plan = write_configs(
        folder, target, columns, audit, options.size, quarantine, candidates, options.minutes
    )
    print(f"audit: {audit_folder / audit_report.PAGE}; excluded samples: {len(quarantine)}")
    print(f"data: {folder / DATA_FILE}")
    for member in plan:
        print(f"member: {member.summary}")
    print(f"experiment: {next_command}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    add_dataset_arguments(parser)
    add = parser.add_argument
    help_ = "folder for the config files; it names the experiment"
    add("-o", "--output", type=Path, required=True, metavar="DIR", help=help_)
    help_ = "height and width of the network input in pixels (224)"
    add("--size", type=positive_int, default=224, metavar="N", help=help_)
    help_ = "pretrained weights: files, or folders of them, named like their networks"
    add("--weights", type=Path, nargs="+", default=[], metavar="FILE", help=help_)
    help_ = "time for the training on this machine, with --weights (15)"
    add("--minutes", type=positive_float, default=15.0, metavar="N", help=help_)
    help_ = "do not exclude identical files with different labels (by default all of them are)"
    add("--keep-conflicts", action="store_true", help=help_)
    add("--audit", type=Path, metavar="DIR", help="folder of the audit (runs/audit-FOLDER-TABLE)")
