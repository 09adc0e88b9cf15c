"""Channel pruning of a run: prune, measure, fine-tune; an interrupted fine-tuning is resumed."""

import io
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from consilium.config_files import read_config
from consilium.inference import data_config
from consilium.training.lightning_cli import run_training
from evaluation import sparsity as pruning_report
from evaluation.files import read_json, write_bytes, write_json, write_text
from evaluation.predictions import PredictionTable
from evaluation.reports.html import format_estimate
from evaluation.stats import paired_tests
from evaluation.stats.estimate import unmeasured_ratio
from lightning_modules import checkpoints
from lightning_modules.classifier import ImageClassifier
from lightning_modules.model_info import count_parameters
from lightning_modules.pruning import measure
from lightning_modules.pruning.search import PruningTarget, choose_structure, training_losses
from lightning_modules.pruning.structure import (
    Structure,
    compose_structures,
    layer_costs,
    pruned_copy,
)

PRUNED_CHECKPOINT = "start.ckpt"
BATCH_SIZES = (1, 8)  # whose latency is measured
FIT = ("fit", "--test", "true")
REPLACED_CALLBACKS = ("callbacks.TwoStageSparseTraining", "callbacks.WarmStart")


@dataclass(frozen=True, kw_only=True)
class PruningRun(PruningTarget):
    """What to prune, how far, and how to fine-tune the pruned network.

    Args:
        dense: run folder of the trained model, with best.ckpt and config.yaml.
        output: run folder of the pruned model.
        images: number of training images that decide on the importance of channels.
        epochs: epochs of fine-tuning.
        lr: peak learning rate of fine-tuning; null uses that of the dense run.
    """

    dense: Path
    output: Path
    images: int = 640
    epochs: int = 10
    lr: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range and folders that are not complete runs."""
        if self.macs is None and self.latency is None:
            raise ValueError("give --macs, --latency or both: how small or how fast")
        for name, value in (("macs", self.macs), ("latency", self.latency)):
            if value is not None and not 0 < value < 1:
                raise ValueError(f"--{name}: {value} is not between 0 and 1")
        for name in ("round_to", "pairs", "images", "epochs"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}: {getattr(self, name)} is not at least 1")
        if self.cost_power < 0:
            raise ValueError(f"--cost-power: {self.cost_power} is not at least 0")
        if self.lr is not None and self.lr <= 0:
            raise ValueError(f"--lr: {self.lr} is not above 0")
        for file in ("best.ckpt", "config.yaml"):
            if not (self.dense / file).is_file():
                raise ValueError(f"RUN: {self.dense} has no {file}; give the run folder of a fit")
        if (self.output / "results.json").exists():
            raise ValueError(f"-o {self.output}: contains a finished run; give another -o, "
                             "or remove it")  # fmt: skip

    def arguments(self) -> dict[str, Any]:
        """The arguments as entries of pruning.json, which must be equal to resume a run."""
        values = asdict(self) | {"device": str(self.device)}
        del values["dense"], values["output"]
        return {"dense": os.path.relpath(self.dense, self.output), "arguments": values}


def run_pruning(run: PruningRun) -> str:
    """Prunes and fine-tunes, or resumes the fine-tuning; returns a summary of the result."""
    if (run.output / "last.ckpt").exists():
        _resume(run)
    else:
        _prune(run)
        _fine_tune(run)
    return _summary(run)


def _prune(run: PruningRun) -> None:
    """Writes the pruned network and pruning.json into the output folder."""
    module, block = checkpoints.load(run.dense / "best.ckpt")
    if not isinstance(module, ImageClassifier) or "backbone" not in block.init_args:
        reason = "only an ImageClassifier with an argument `backbone` can be pruned"
        raise ValueError(f"RUN: {run.dense} contains a {block.module}; {reason}")
    net, size = module.net, block.preprocess["size"]
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    data = data_config.load_datamodule([str(run.dense / "config.yaml")])
    losses = training_losses(module, data, run.images)
    structure = choose_structure(net, image, block.init_args["backbone"], run, losses)
    pruned = pruned_copy(net, structure)
    measured = measure_pruned(net, pruned, image, run)
    write_json(run.output / pruning_report.PRUNING_FILE, measured | run.arguments())
    save_pruned(run.output / PRUNED_CHECKPOINT, block, pruned, structure)
    print(pruning_report.pruning_sentence(measured))


def measure_pruned(
    net: nn.Module, pruned: nn.Module, image: Tensor, target: PruningTarget
) -> dict[str, Any]:
    """The content of pruning.json: channels by layer, and ratios of MACs, latency and energy.

    Ratios are those of the pruned to the dense network `net`; `image` is a batch (2, 3, H, W).
    """
    before, after = (layer_costs(model, image) for model in (net, pruned))
    macs, macs_dense = (sum(cost.macs for cost in costs.values()) for costs in (after, before))
    pairs, device = target.pairs, target.device
    batches = {str(n): image[:1].expand(n, -1, -1, -1) for n in BATCH_SIZES}
    latency = {n: measure.latency_ratio(pruned, net, batch, pairs, device)
               for n, batch in batches.items()}  # fmt: skip
    batch = batches[str(BATCH_SIZES[-1])].to(device)
    if target.energy:
        energy, joules = measure.energy_ratio(pruned.to(device), net.to(device), batch)
    else:
        energy, joules = unmeasured_ratio("energy: not requested (--energy)"), []
    return {
        "weights_zero_fraction": 0.0,
        "macs_theoretical_ratio": macs / macs_dense,
        "latency_ratio_measured": latency["1"].value,
        "energy_ratio_measured": energy.value,
        "parameters": count_parameters(pruned),
        "parameters_dense": count_parameters(net),
        "round_to": target.round_to,
        "latency": {n: asdict(estimate) for n, estimate in latency.items()},
        "energy": asdict(energy),
        "joules_per_1000_images": [[1000 * j for j in pair] for pair in joules],
        "machine": measure.describe_device(device),
        "layers": [
            {"name": name, "in": cost.channels["in"], "in_left": after[name].channels["in"],
             "out": cost.channels["out"], "out_left": after[name].channels["out"]}
            for name, cost in before.items() if cost.macs and cost.channels != after[name].channels
        ],
    }  # fmt: skip


def save_pruned(file: Path, block: checkpoints.Block, net: nn.Module, structure: Structure) -> None:
    """Writes a checkpoint of a pruned network; `block` is the metadata of that before pruning."""
    state = {f"net.{name}": tensor.cpu() for name, tensor in net.state_dict().items()}
    structure = compose_structures(block.structure, structure)
    weights = checkpoints.weights_hash(state)
    block = replace(block, structure=structure, metrics={}, measured_weights="", weights=weights)
    stream = io.BytesIO()
    torch.save(checkpoints.inference_checkpoint(block, state), stream)
    write_bytes(file, stream.getvalue())


def _fine_tune(run: PruningRun) -> None:
    """Trains the pruned network with the changed config of the dense run."""
    config = fine_tuning_config(read_config(run.dense / "config.yaml"), run)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        write_text(file, yaml.safe_dump(config))
        run_training([*FIT, "--config", str(file), "--run", str(run.output)])


def _resume(run: PruningRun) -> None:
    """Continues fine-tuning from its last epoch; ValueError if it had other arguments."""
    file, last = run.output / pruning_report.PRUNING_FILE, run.output / "last.ckpt"
    content = read_json(file) if file.is_file() else {}
    if any(content.get(name) != value for name, value in run.arguments().items()):
        raise ValueError(f"-o {run.output}: contains an unfinished run with other arguments; "
                         "give another -o, or remove it")  # fmt: skip
    print(f"resuming from {last}")
    config = str(run.output / "config.yaml")
    run_training([*FIT, "--config", config, "--ckpt_path", str(last), "--run", str(run.output)])


def fine_tuning_config(config: dict[str, Any], run: PruningRun) -> dict[str, Any]:
    """The dense run's config, changed to start from the pruned network with a cosine schedule."""
    model, trainer = config["model"]["init_args"], config["trainer"]
    if run.lr is not None:
        model["optimizer"]["lr"] = run.lr
    warmup = min(1.0, run.epochs / 2)
    model["lr_scheduler"] |= {"name": "cosine", "warmup_epochs": warmup, "epochs": None}
    model |= {"pretrained": False, "fine_tuning": {}}
    others = [callback for callback in trainer["callbacks"]
              if not callback["class_path"].startswith(REPLACED_CALLBACKS)]  # fmt: skip
    start = {"checkpoint": str(run.output / PRUNED_CHECKPOINT)}
    warm_start = {"class_path": "callbacks.WarmStart", "init_args": start}
    trainer |= {"max_epochs": run.epochs, "callbacks": [warm_start, *others]}
    return config


def _summary(run: PruningRun) -> str:
    """Size, speed and accuracy of the pruned model next to the dense one, in two or three lines."""
    lines = [pruning_report.pruning_sentence(read_json(run.output / pruning_report.PRUNING_FILE))]
    files = [folder / "predictions" / "test.parquet" for folder in (run.output, run.dense)]
    if all(file.is_file() for file in files):
        pruned, dense = (PredictionTable.read(file) for file in files)
        gap = paired_tests.paired_differences(pruned, dense)["accuracy"].estimate
        lines.append(f"Accuracy, pruned minus dense: {format_estimate(gap)} on {gap.n:,} images.")
    return "\n".join([*lines, f"Report: {run.output / 'report.html'}"])
