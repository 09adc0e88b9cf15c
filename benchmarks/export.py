"""Exports of every known backbone beside torch: largest difference, file, time of both runtimes.

Run: python -m benchmarks.export [NAME...] [--format onnx] [--repeats N]
Weights are random, the head scaled so that logits spread like those of a trained network; pictures
are generated and go through the Preprocess of the published weights. The runtimes take turns.
"""

import argparse
import gc
import statistics
import tempfile
from pathlib import Path

import torch

from consilium.cli import export
from consilium.inference import export as export_bundle
from consilium.inference.export import generated_images
from consilium.inference.export_formats import FORMATS
from consilium.inference.predictor import Member, Predictor
from datamodules.preprocess import Preprocess
from evaluation.stats.estimate import ratio_estimate
from evaluation.voters.simple import Soft
from evaluation.voters.store import FittedEnsemble
from lightning_modules import ImageClassifier
from lightning_modules.cam import Explainer
from lightning_modules.model_info import SHIPPED_BACKBONES
from lightning_modules.pruning.measure import time_in_turns

CLASSES = ["a", "b", "c", "d"]
SPREAD = 3.0  # standard deviation of the logits
BATCHES = (1, 4)
PICTURES = 8  # for the differences


def main() -> None:
    """Prints one row a backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=SHIPPED_BACKBONES, help="backbones (all known)")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx")
    parser.add_argument("--repeats", type=int, default=5, help="of each timing (5)")
    asked = parser.parse_args()
    print(f"{asked.format}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"{asked.repeats} repeats; ms are of torch, ratios torch / {asked.format}\n")  # fmt: skip
    print("| backbone | px | MB | logit | probability | ms, batch 1 | ratio | ms an image, batch 4 "
          "| ratio |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name in asked.names:
        try:
            row(name, asked.format, asked.repeats)
        except ValueError as error:
            print(f"| {name} | cannot: {error} |", flush=True)
        gc.collect()


def row(name: str, kind: str, repeats: int) -> None:
    """Exports one backbone, compares and times it."""
    model = one(name)
    pictures = generated_images(PICTURES)
    with tempfile.TemporaryDirectory() as folder:
        found = export.export(model, kind, Path(folder) / "out", pictures)[name]
        other = export_bundle.load_export(Path(folder) / "out")
        seen = torch.stack([model.members[0].preprocess(picture) for picture in pictures])
        cells = [timed(model.members[0], other.members[0], seen[:n], repeats) for n in BATCHES]
    numbers = " | ".join(f"{ms:.1f} | {ratio:.2f}" for ms, ratio in cells)
    print(f"| {name} | {seen.shape[-1]} | {found.bytes / 1e6:.1f} | {found.logit:.1e} "
          f"| {found.probability:.1e} | {numbers} |", flush=True)  # fmt: skip


def one(name: str) -> Predictor:
    """An ensemble of one untrained backbone, sure of some answers."""
    torch.manual_seed(0)
    view = Preprocess() if name == "residual_attention" else Preprocess.from_backbone(name)
    module = ImageClassifier(CLASSES, name, image_size=view.size).eval()
    seen = torch.stack([view(picture) for picture in generated_images(4)])
    with torch.inference_mode():
        module.net.get_classifier().weight.normal_()
        module.net.get_classifier().weight.mul_(SPREAD / module(seen).std())
    member = Member(name, "w", view, list(range(len(CLASSES))), Explainer(module, view.size))
    return Predictor([member], FittedEnsemble(Soft(), ["w"], CLASSES), torch.device("cpu"))


def timed(ours: Member, theirs: Member, seen: torch.Tensor, repeats: int) -> tuple[float, float]:
    """Milliseconds an image by torch, and the median ratio of torch to the other, in turns."""
    pairs = time_in_turns(lambda: ours.logits(seen), lambda: theirs.logits(seen), repeats)
    return 1000 * statistics.median(a for a, _ in pairs) / len(seen), ratio_estimate(
        pairs
    ).value or 0.0


if __name__ == "__main__":
    main()
