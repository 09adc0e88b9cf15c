"""consilium prune: take whole channels out of a trained member, and train what is left."""

import argparse
import io
import os
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import nn

from consilium.cli import training, words
from consilium.cli.arguments import device
from consilium.cli.errors import Stopped
from consilium.inference import data_config
from evaluation import pruned
from evaluation.files import read_json, write_bytes, write_json
from evaluation.predictions import PredictionTable
from evaluation.reports.html import number
from evaluation.stats import paired_tests
from lightning_modules import checkpoints
from lightning_modules.pruning import importance, search, structure
from lightning_modules.pruning.narrow import Wanted, account, choose
from lightning_modules.pruning.structure import Kept

START = "start.ckpt"
REPLACED = ("callbacks.TwoStageSparseTraining", "callbacks.WarmStart")
EXAMPLE = """\
example: consilium prune runs/b2 --macs 0.6 --epochs 10
reads runs/b2/best.ckpt, takes out the channels that its loss hangs on least, by training
pictures, until 60 % of its multiply-accumulates are left; trains on for 10 epochs with
runs/b2/config.yaml, and measures it beside runs/b2. The run folder (runs/b2-pruned) is a member
like any other; killed, the same command goes on with it. With --latency the channels that cost
most time go first, at some cost of accuracy. Masks (configs/recipe/ast25.yaml) save no time."""


def run(argv: list[str]) -> int:
    """Prunes, measures, fine-tunes, compares; a fine-tuning that was killed is gone on with."""
    asked = parser().parse_args(argv)
    require(asked)
    out = asked.output or asked.run.with_name(f"{asked.run.name}-pruned")
    if (out / "results.json").exists():
        raise ValueError(f"-o {out}: holds a finished run; give another -o, or remove it")
    try:
        (go_on if (out / "last.ckpt").exists() else begin)(asked, out)
    except Stopped as stopped:
        raise Stopped("stopped; the same command goes on", stopped.code) from None
    print(verdict(asked.run, out))
    return 0


def begin(asked: argparse.Namespace, out: Path) -> None:
    """Takes the channels out, measures what is left, and trains it."""
    module, block = checkpoints.load(asked.run / "best.ckpt")
    net, side = cast(Any, module).net, block.preprocess["size"]
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    wanted = Wanted(**{each.name: getattr(asked, each.name) for each in fields(Wanted)})
    data = data_config.from_configs([str(asked.run / "config.yaml")])
    losses = importance.losses(module, data, asked.pictures)
    kept = choose(net, image, block.init_args["backbone"], wanted, losses)
    small = search.narrowed(net, kept)
    said = account(net, small, image, kept, wanted)
    write_json(out / pruned.FILE, said | of(asked, out))
    _start(out, block, small, kept)
    print(pruned.sentence(said))
    fine_tune(asked, out)


def go_on(asked: argparse.Namespace, out: Path) -> None:
    """The fine-tuning from its last epoch, if it is the one that is asked for."""
    file, now = out / pruned.FILE, of(asked, out)
    then = read_json(file) if file.is_file() else {}
    if {name: then.get(name) for name in now} != now:
        raise ValueError(f"-o {out}: holds an unfinished run of another command; give another -o, "
                         "or remove it")  # fmt: skip
    config, last = str(out / "config.yaml"), str(out / "last.ckpt")
    print(f"goes on with {last}")
    training.run(["fit", "--config", config, "--ckpt_path", last, "--run", str(out)])


def of(asked: argparse.Namespace, out: Path) -> dict[str, Any]:
    """What pruning.json says of the command: the dense run, and every number."""
    plain = {k: str(v) if k == "device" else v for k, v in vars(asked).items()}
    numbers = {name: value for name, value in plain.items() if name not in ("run", "output")}
    return {"dense": os.path.relpath(asked.run, out), "asked": numbers}


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = words.parser("prune", __doc__, EXAMPLE)
    add = main.add_argument
    add("run", type=Path, metavar="RUN", help="run folder of a member (best.ckpt, config.yaml)")
    add("--macs", type=float, help="share of the multiply-accumulates to keep")
    add("--latency", type=float, help="share of the time of one image to keep, measured here")
    add("--round_to", type=int, default=16, help="channels are multiples of it: 16 CPU, 8 GPU (16)")
    add("--power", type=float, default=0.5, help="how much a channel's cost counts: 0 not (0.5)")
    add("--pictures", type=int, default=640, help="of the training split, to weigh channels (640)")
    add("--epochs", type=int, default=10, help="epochs of fine-tuning (10)")
    add("--lr", type=float, help="its peak rate, cosine after one epoch of rise (the run's)")
    add("-o", "--output", type=Path, help="run folder to fill (RUN-pruned)")
    add("--pairs", type=int, default=20, help="pairs of timed passes, dense and pruned (20)")
    add("--energy", action="store_true", help="count joules as well: four minutes or more")
    help_ = "where time is measured: cpu, cuda, cuda:N or auto (cpu)"
    add("--device", type=device, default="cpu", help=help_)
    return main


def require(asked: argparse.Namespace) -> None:
    """Refuses what cannot work, before anything is computed."""
    if asked.macs is None and asked.latency is None:
        raise ValueError("give --macs, --latency or both: how small, how fast it shall be")
    for name in ("macs", "latency"):
        value = getattr(asked, name)
        if value is not None and not 0 < value < 1:
            raise ValueError(f"--{name}: {value} is not between 0 and 1")
    for name in ("round_to", "pictures", "epochs", "pairs"):
        if getattr(asked, name) < 1:
            raise ValueError(f"--{name}: {getattr(asked, name)} is not at least 1")
    if asked.power < 0:
        raise ValueError(f"--power: {asked.power} is not at least 0")
    if asked.lr is not None and asked.lr <= 0:
        raise ValueError(f"--lr: {asked.lr} is not above 0")
    for file in ("best.ckpt", "config.yaml"):
        if not (asked.run / file).is_file():
            raise ValueError(f"RUN: {asked.run} holds no {file}; it is the folder of a fit")


def fine_tune(asked: argparse.Namespace, out: Path) -> None:
    """A fit with the run's own config, from the narrower network."""
    said = yaml.safe_load((asked.run / "config.yaml").read_text(encoding="utf-8"))
    model, trainer = said["model"]["init_args"], said["trainer"]
    model["pretrained"] = False
    lr = model["optimization"]["lr"] if asked.lr is None else asked.lr
    rate = {"lr": lr, "epochs": None}
    rise = {"schedule": "cosine", "warmup_epochs": min(1.0, asked.epochs / 2)}
    model["optimization"] |= rate | rise
    model["tuning"] = {}  # nothing stands still: every layer has to make do with what is left
    trainer["max_epochs"] = asked.epochs
    others = [c for c in trainer["callbacks"] if not c["class_path"].startswith(REPLACED)]
    start = {"class_path": "callbacks.WarmStart", "init_args": {"start": str(out / START)}}
    trainer["callbacks"] = [start, *others]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(said), encoding="utf-8")
        training.run(["fit", "--config", str(file), "--run", str(out)])


def verdict(run: Path, out: Path) -> str:
    """What was saved and what it cost, in two or three lines."""
    said = [pruned.sentence(read_json(out / pruned.FILE))]
    tables = [folder / "predictions" / "test.parquet" for folder in (out, run)]
    if all(table.is_file() for table in tables):
        small, dense = (PredictionTable.read(table) for table in tables)
        gap = paired_tests.differences(small, dense)["accuracy"].figure
        said.append(f"Accuracy, pruned minus dense: {number(gap)} on {gap.n:,} images.")
    return "\n".join([*said, f"Report: {out / 'report.html'}"])


def _start(out: Path, block: checkpoints.Block, small: nn.Module, kept: Kept) -> None:
    """start.ckpt: the narrower network before any fine-tuning, a checkpoint like any other."""
    state = {f"net.{name}": tensor.cpu() for name, tensor in small.state_dict().items()}
    kept = structure.composed(cast(Kept, block.structure), kept)
    said = replace(block, structure=kept, metrics={}, measured_weights="")
    stream = io.BytesIO()
    torch.save(checkpoints.content(said, state), stream)
    write_bytes(out / START, stream.getvalue())
