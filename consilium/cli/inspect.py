"""Show what is stored in a checkpoint, and verify its weights.

No code in the file is run, and neither its YAML nor network access is needed. Of an ensemble every
member is shown. The exit code is 1 if the weights of a file are not those that were recorded in it
or in the ensemble.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

EXAMPLES = """\
examples:
  consilium inspect runs/resnet/best.ckpt
  consilium inspect runs/demo/ensemble --json
"""
HASH_DIGITS = 12


def run(args: argparse.Namespace) -> int:
    """Prints every checkpoint and returns 0 if all weights are intact, else 1."""
    from lightning_modules.ensemble import find_ensemble_file, read_ensemble_file

    path = args.model
    if file := find_ensemble_file(path):
        members = read_ensemble_file(file)["members"].values()
        infos = [inspect_checkpoint(member["path"], member["weights"]) for member in members]
    else:
        infos = [inspect_checkpoint(path / "best.ckpt" if path.is_dir() else path)]
    if args.json:
        print(json.dumps(infos, indent=2))
    else:
        for info in infos:
            print_info(info, Console(soft_wrap=True))
    return 0 if all(info["is_intact"] for info in infos) else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("model", type=Path, metavar="CKPT|ENSEMBLE", help="checkpoint, run folder or ensemble.json")
    add("--json", action="store_true", help="print everything as JSON")


def inspect_checkpoint(path: Path, expected_hash: str | None = None) -> dict[str, Any]:
    """Content of a checkpoint, and whether its weights have the recorded (and expected) hash."""
    import torch

    from lightning_modules import checkpoints, model_info, packing

    block, state = checkpoints.read(path)
    weights = checkpoints.weights_hash(state)
    parameters, macs = model_info.checkpoint_cost(block)
    with torch.device("meta"):
        module = checkpoints.build_module(block)
    module.load_state_dict(state, assign=True)
    return {
        "path": path.as_posix(),
        "block": {name: value for name, value in vars(block).items() if name not in packing.IDS},
        "train_samples": len(block.train_ids),
        "val_samples": len(block.val_ids),  # its epoch was chosen by these
        "weights": weights,
        "is_intact": weights == block.weights and expected_hash in (None, weights),
        "is_measured": weights == block.measured_weights,  # whether its metrics are of these
        "parameters": parameters,
        "macs": macs,
        "zero_fraction": model_info.zero_fraction(module),
        "bytes": path.stat().st_size,
    }


def print_info(info: dict[str, Any], console: Console) -> None:
    """Prints properties, then metrics of each class and of each pair of classes."""
    table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
    table.title = info["path"]
    for name, value in properties(info).items():
        table.add_row(name, value)
    console.print(table)
    metrics = info["block"]["metrics"]
    rates = [rate for rate in ("recall", "precision") if any(m.startswith(rate) for m in metrics)]
    if rates:
        rows = {c: [metrics.get(f"{r}/{c}") for r in rates] for c in info["block"]["class_names"]}
        console.print(metric_table("class", rates, rows))
    pairs = {m.split("/", 1)[1]: [v] for m, v in metrics.items() if m.startswith("pair/")}
    if pairs:
        console.print(metric_table("pair", ["accuracy"], pairs))


def properties(info: dict[str, Any]) -> dict[str, str]:
    """Labels and values of the printed table."""
    block = info["block"]
    recorded = block["weights"][:HASH_DIGITS]
    status = "intact" if info["is_intact"] else f"NOT the recorded ones ({recorded})"
    metrics = "  ".join(f"{k} {v:.4f}" for k, v in block["metrics"].items() if "/" not in k)
    measured = "with these weights" if info["is_measured"] else "with OTHER weights"
    narrow = f", {len(block['structure'])} layers pruned" if block["structure"] else ""
    return {
        "model": f"{block['module']} with backbone {block['init_args'].get('backbone')}",
        "classes": ", ".join(block["class_names"]),
        "weights": f"{info['weights'][:HASH_DIGITS]}, {status}",
        "network": f"{info['parameters']:,} parameters ({info['parameters'] * 4e-6:.1f} MB as "
        f"float32), {info['macs'] / 1e9:.3f} G MACs, {info['zero_fraction']:.1%} of the parameters "
        f"are 0{narrow}",
        "input": describe_preprocess(block["preprocess"]),
        "data": f"manifest {block['manifest_digest'][:HASH_DIGITS]}, {info['train_samples']:,} "
        f"training samples, epoch chosen by {info['val_samples']:,} samples",
        "saved": f"after epoch {block['epoch']}, {info['bytes'] / 1e6:.1f} MB, "
        + describe_versions(block["versions"]),
        "val": f"{metrics} (computed {measured}, no intervals)" if metrics else "not evaluated",
    }


def describe_preprocess(preprocess: dict[str, Any]) -> str:
    """The settings of a Preprocess that are in effect."""
    settings = {name: value for name, value in preprocess.items() if value not in (None, False, 0)}
    hidden = ("size",) if preprocess["clahe"] else ("size", "grid")  # grid is CLAHE's
    others = [f"{name} {value}" for name, value in settings.items() if name not in hidden]
    return ", ".join([f"{preprocess['size']} px", *others])


def describe_versions(saved: dict[str, str]) -> str:
    """Package versions in the checkpoint, with the installed ones where they differ."""
    from lightning_modules import checkpoints

    installed = checkpoints.package_versions()
    other = {k: f" (installed: {installed[k]})" for k, v in saved.items() if v != installed[k]}
    return ", ".join(f"{name} {version}{other.get(name, '')}" for name, version in saved.items())


def metric_table(header: str, columns: list[str], rows: dict[str, list[float | None]]) -> Table:
    """Metrics by class or by pair of classes."""
    table = Table(header, *(Column(name, justify="right") for name in columns), box=None)
    for name, values in rows.items():
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    return table
