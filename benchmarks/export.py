"""Exports of the shipped backbones: difference from PyTorch, file size, and time of both runtimes.

Run: python -m benchmarks.export [NAME...] [--format onnx] [--repeats N]
Weights are random; the head is scaled so that logits spread like those of a trained network. Images
are synthetic and preprocessed as for the published weights. The runtimes are timed in turns.
"""

import argparse
import gc
import statistics
import tempfile
from pathlib import Path

import torch

from consilium.inference.export import export_ensemble, generated_images, load_export
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
LOGIT_STD = 3.0
BATCH_SIZES = (1, 4)
NUM_IMAGES = 8  # for the differences


def main() -> None:
    """Prints one row per backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    help_ = "backbones (all that are shipped)"
    parser.add_argument("names", nargs="*", default=SHIPPED_BACKBONES, help=help_)
    parser.add_argument("--format", choices=list(FORMATS), default="onnx")
    parser.add_argument("--repeats", type=int, default=5, help="of each timing (5)")
    args = parser.parse_args()
    print(f"{args.format}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"{args.repeats} repeats; ms are of torch, ratios torch / {args.format}\n")  # fmt: skip
    print("| backbone | px | MB | logit | probability | ms, batch 1 | ratio | ms per image, batch "
          "4 | ratio |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name in args.names:
        try:
            print_row(name, args.format, args.repeats)
        except ValueError as error:
            print(f"| {name} | cannot be exported: {error} |", flush=True)
        gc.collect()


def print_row(name: str, format_name: str, repeats: int) -> None:
    """Exports one backbone, compares and times it."""
    predictor = untrained_predictor(name)
    images = generated_images(NUM_IMAGES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "out"
        difference = export_ensemble(predictor, format_name, folder, images)[name]
        ours, theirs = predictor.members[0], load_export(folder).members[0]
        inputs = torch.stack([ours.preprocess(image) for image in images])
        timings = [time_ratio(ours, theirs, inputs[:size], repeats) for size in BATCH_SIZES]
    cells = " | ".join(f"{ms:.1f} | {ratio:.2f}" for ms, ratio in timings)
    print(f"| {name} | {inputs.shape[-1]} | {difference.bytes / 1e6:.1f} | {difference.logit:.1e} "
          f"| {difference.probability:.1e} | {cells} |", flush=True)  # fmt: skip


def untrained_predictor(name: str) -> Predictor:
    """An ensemble of one untrained backbone whose logits have the standard deviation LOGIT_STD."""
    torch.manual_seed(0)
    view = Preprocess() if name == "residual_attention" else Preprocess.from_backbone(name)
    module = ImageClassifier(CLASSES, name, image_size=view.size).eval()
    inputs = torch.stack([view(image) for image in generated_images(4)])
    with torch.inference_mode():
        module.net.get_classifier().weight.normal_()
        module.net.get_classifier().weight.mul_(LOGIT_STD / module(inputs).std())
    order = list(range(len(CLASSES)))
    member = Member(name, "w", view, order, module, Explainer(module, view.size))
    return Predictor([member], FittedEnsemble(Soft(), ["w"], CLASSES), torch.device("cpu"))


def time_ratio(
    ours: Member, theirs: Member, inputs: torch.Tensor, repeats: int
) -> tuple[float, float]:
    """Milliseconds per image by torch, and the median ratio of torch to the other runtime."""
    pairs = time_in_turns(lambda: ours.logits(inputs), lambda: theirs.logits(inputs), repeats)
    milliseconds = 1000 * statistics.median(seconds for seconds, _ in pairs) / len(inputs)
    return milliseconds, ratio_estimate(pairs).value or 0.0


if __name__ == "__main__":
    main()
