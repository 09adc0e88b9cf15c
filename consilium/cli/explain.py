"""Write saliency maps of a model or of each member of an ensemble.

For each image: an overlay (.png), the raw map (.npy) and a panel with every member; explain.json
has all predictions. With --measure, the maps of a split are evaluated by pointing game, energy in
the lesion's box, deletion and insertion instead.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from consilium.cli.options import device, positive_int

if TYPE_CHECKING:
    import pandas as pd

    from consilium.inference.predictor import Predictor

EXAMPLES = """\
examples:
  consilium explain runs/demo/ensemble film.png scan.dcm -o runs/maps
  consilium explain runs/resnet --split test --limit 20
  consilium explain runs/resnet --split test --measure GradCAM LayerCAM -o runs/saliency
"""
MAX_ERRORS = 5  # unreadable images that an error names


def run(args: argparse.Namespace) -> int:
    """Explains the given images or a split, or evaluates the maps of a split."""
    from consilium.inference.panels import explain_images
    from consilium.inference.predictor import load_predictor

    check_arguments(args)
    if args.measure is not None:
        return evaluate(args)
    predictor = load_predictor(args.model, args.method, args.device)
    names = predictor.class_names
    if args.class_name not in (None, *names):
        raise ValueError(f"--class {args.class_name!r} is not one of {', '.join(names)}")
    label = None if args.class_name is None else names.index(args.class_name)
    images = [(Path(path).name, path, args.group) for path in args.images]
    if args.split:
        table = split_of(args, predictor)
        groups = predictor.groups_of(table, args.group)
        images = list(zip(table["id"], table["path"], groups, strict=True))
    count, errors = explain_images(predictor, args.model, images, args.output, label)
    if count:
        print(f"{count} images explained: {args.output}")
    if errors:
        examples = "; ".join(errors[:MAX_ERRORS]) + "; ..." * (len(errors) > MAX_ERRORS)
        raise ValueError(f"{len(errors)} of {len(images)} images cannot be read: {examples}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Evaluates saliency maps, prints the estimates and writes a report."""
    from consilium.inference import saliency_evaluation
    from consilium.inference.predictor import load_predictor
    from evaluation.reports.html import format_estimate

    methods = args.measure or [args.method]
    predictor = load_predictor(args.model, methods[0], args.device)
    table = split_of(args, predictor)
    predictor.refuse_trained_samples(table["path"].tolist(), args.split)
    rows = saliency_evaluation.select_correct(predictor, table)
    saliency_evaluation.write_examples(predictor, rows, args.output)
    results = saliency_evaluation.evaluate_saliency(predictor, methods, rows)
    saliency_evaluation.write_results(args.output, results)
    labels = saliency_evaluation.LABELS
    for member, method, estimates in results:
        cells = [f"{labels[name]} {format_estimate(e, 3)}" for name, e in estimates.items()]
        print(f"{member}, {method}: {'; '.join(cells)}")
    print(f"Report: {args.output / 'report.html'}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    from evaluation.saliency import SALIENCY_METHODS

    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("model", type=Path, metavar="CKPT|ENSEMBLE", help="checkpoint, run folder or ensemble.json")
    add("images", nargs="*", metavar="IMAGE", help="image files, DICOM included")
    folder = Path("runs/explain")
    add("-o", "--output", type=Path, default=folder, metavar="DIR", help=f"({folder})")
    add("--class", dest="class_name", metavar="NAME", help="class to explain (the predicted one)")
    add("--method", default="GradCAM", help=f"{', '.join(SALIENCY_METHODS)} (GradCAM)")
    add("--split", choices=["train", "val", "test", "predict"], help="explain a whole split")
    help_ = "config of the dataset of --split (config.yaml in the model's run folder)"
    add("--config", action="append", default=[], metavar="FILE", help=help_)
    add("--measure", nargs="*", metavar="METHOD", help="evaluate the maps of METHODs on --split")
    add("--limit", type=positive_int, metavar="N", help="at most N images, evenly spaced")
    help_ = "value of the attribute, for an ensemble with weights per group"
    add("--group", default="", metavar="VALUE", help=help_)
    add("--device", type=device, default="cpu", help="cpu, cuda, cuda:N or auto (cpu)")


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError if arguments contradict each other."""
    if bool(args.images) == bool(args.split):
        raise ValueError("give either IMAGE... or --split, with its dataset in --config")
    split_only = {"--config": args.config, "--limit": args.limit, "--measure": args.measure}
    extra = [name for name, value in split_only.items() if value]
    if extra and not args.split:
        raise ValueError(f"{' '.join(extra)}: needs --split; IMAGE... are single files")
    if args.measure is None:
        return
    if args.split not in ("val", "test"):
        raise ValueError(f"--measure needs --split val or test, not {args.split}")
    for name, value in {"--class": args.class_name, "--group": args.group}.items():
        if value:
            raise ValueError(f"{name} {value}: --measure takes the class and group of each row")


def split_of(args: argparse.Namespace, predictor: "Predictor") -> "pd.DataFrame":
    """Rows of --split of the dataset in --config, or in config.yaml of the model's run folder."""
    from consilium.inference.data_config import read_split
    from consilium.inference.predictor import run_folder_of

    folder = run_folder_of(args.model)
    if not args.config and not (folder / "config.yaml").is_file():
        raise ValueError(f"--config: {folder} has no config.yaml; name the config of the dataset")
    configs = args.config or [str(folder / "config.yaml")]
    return read_split(configs, args.split, predictor.class_names, args.limit)
