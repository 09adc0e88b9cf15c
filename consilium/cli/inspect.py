"""Show what is stored in a checkpoint, and verify that nothing in it was changed.

No code in the file is run, and neither its YAML nor network access is needed. Of an ensemble every
member is shown. The exit code is 1 if the weights of a file are not those that were recorded in it
or in the ensemble, or if a key is given and the model is not signed with it.

Two different things are verified. The digest shows whether a file was changed since it was
written; anyone can compute it anew after a change. A signature (HMAC-SHA256) shows that somebody
who has the key signed exactly this model; who can verify it can also sign.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from evaluation.files import DIGEST, KEY_VARIABLE, is_signed, naming, read_json, read_key, sign

EXAMPLES = """\
examples:
  consilium inspect runs/resnet/best.ckpt
  consilium inspect runs/demo/ensemble --json
  head -c 32 /dev/urandom | base64 > team.key; chmod 600 team.key
  consilium inspect runs/demo/ensemble --key team.key --sign   writes ensemble.json.signature
  consilium inspect runs/demo/ensemble --key team.key          exit code 1 if not signed with it
"""
HASH_DIGITS = 12
INTEGRITY = "matches: unchanged since it was written; it does not show who wrote it"
UNVERIFIED = "not verified, no --key: who made this model is unknown"
SIGNATURES = {  # by whether there is a valid one; None: there is none
    True: "VALID: somebody who has your key signed exactly this model",
    False: "NOT VALID: signed with another key, or changed since",
    None: "MISSING: nobody who has your key signed this model",
}


def run(args: argparse.Namespace) -> int:
    """Prints every checkpoint and returns 0 if all are intact and signed as required, else 1."""
    key, path = read_key(args.key), args.model
    if args.sign and key is None:
        raise ValueError(f"--sign: needs --key FILE, or a key in {KEY_VARIABLE}")
    file, digest, infos = inspect_model(path / "best.ckpt" if is_run(path) else path)
    is_intact = all(info["is_intact"] for info in infos)
    if args.sign and not is_intact:
        raise ValueError(f"--sign: {file} is not intact")
    if args.sign and key:
        print(f"signed: {sign(file, digest, key)}", file=sys.stderr)
    signed = None if key is None else is_signed(file, digest, key)
    is_accepted = key is None or bool(signed)
    status = SIGNATURES[signed] if key else UNVERIFIED
    if args.json:
        print(json.dumps([{**info, "signature": status} for info in infos], indent=2))
        return 0 if is_intact and is_accepted else 1
    for info in infos:
        print_info(info, Console(soft_wrap=True))
    print(f"{file}\ndigest     {digest[:HASH_DIGITS]}, {INTEGRITY}\nsignature  {status}")
    return 0 if is_intact and is_accepted else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL",
        help="checkpoint, run folder, ensemble.json or a folder of `consilium export`")  # fmt: skip
    add("--json", action="store_true", help="print everything as JSON")
    help_ = f"file with the key of signatures ({KEY_VARIABLE}): the signature must be valid"
    add("--key", type=Path, metavar="FILE", help=help_)
    add("--sign", action="store_true", help="sign the model with the key")


def is_run(path: Path) -> bool:
    """Whether a path is the run folder of a single model."""
    from lightning_modules.ensemble import find_ensemble_file

    return path.is_dir() and not find_ensemble_file(path) and not (path / "export.json").is_file()


def inspect_model(path: Path) -> tuple[Path, str, list[dict[str, Any]]]:
    """The file that states a model's digest, the digest, and the content of each checkpoint."""
    from consilium.inference.export import FILE, load_export
    from lightning_modules.ensemble import find_ensemble_file, read_ensemble_file, read_voter

    if path.is_dir() and not find_ensemble_file(path):
        load_export(path)
        return path / FILE, read_json(path / FILE)[DIGEST], []
    file = find_ensemble_file(path)
    if file is None:
        info = inspect_checkpoint(path)
        return path, info["block"][DIGEST], [info]
    content = read_ensemble_file(file)
    members = content["members"].values()
    infos = [inspect_checkpoint(m["path"], m["weights"], m[DIGEST]) for m in members]
    read_voter(file, content)
    return file, content[DIGEST], infos


def inspect_checkpoint(
    path: Path, expected_hash: str | None = None, expected_digest: str | None = None
) -> dict[str, Any]:
    """Content of a checkpoint, and whether it has the recorded (and expected) hashes."""
    import torch

    from lightning_modules import checkpoints, model_info, packing

    block, state = checkpoints.read(path)
    checkpoints.require_finite(state, str(path))
    weights = checkpoints.weights_hash(state)
    with naming(path):
        parameters, macs = model_info.checkpoint_cost(block)
        with torch.device("meta"):
            module = checkpoints.build_module(block)
        module.load_state_dict(state, assign=True)
    is_intact = weights == block.weights and expected_hash in (None, weights)
    return {
        "path": path.as_posix(),
        "block": {name: value for name, value in vars(block).items() if name not in packing.IDS},
        "train_samples": len(block.train_ids),
        "val_samples": len(block.val_ids),  # its epoch was chosen by these
        "weights": weights,
        "is_intact": is_intact and expected_digest in (None, block.digest),
        "is_measured": weights == block.measured_weights,  # whether its metrics are of these
        "parameters": parameters,
        "macs": macs,
        "zero_fraction": model_info.zero_fraction(module),
        "bytes": path.stat().st_size,
    }


def print_info(info: dict[str, Any], console: Console) -> None:
    """Prints the `inspect_checkpoint` of one file: properties, then metrics by class and pair."""
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
    """What is printed about a checkpoint, as text by label."""
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
    """The settings of a Preprocess that are in effect, such as `224 px, clahe 2.0`."""
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
    """A row per class or pair of classes; `rows` are its metrics in the order of `columns`."""
    table = Table(header, *(Column(name, justify="right") for name in columns), box=None)
    for name, values in rows.items():
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    return table
