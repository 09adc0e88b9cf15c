"""Grad-CAM: seconds an image beside one forward and backward pass, and memory over 200 images.

Run: python -m benchmarks.cam [--backbone NAME] [--size N] [--images N] [--repeats N]
"""

import argparse
import gc
import resource
import statistics
import time
from pathlib import Path

import torch

from evaluation.reports.html import format_estimate
from evaluation.stats.estimate import ratio_estimate
from lightning_modules import ImageClassifier
from lightning_modules.cam import Explainer
from lightning_modules.model_info import SHIPPED_BACKBONES, backbone_info
from lightning_modules.pruning.measure import time_in_turns


def main() -> None:
    """Prints the ratio, the memory, and with --all the map of every known backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=200, help="for the memory (200)")
    parser.add_argument("--repeats", type=int, default=15, help="of each timing (15)")
    parser.add_argument("--all", action="store_true", help="explain with every known backbone")
    asked = parser.parse_args()
    torch.manual_seed(0)
    time_one(asked.backbone, asked.size, asked.repeats)
    hold(asked.images)
    if asked.all:
        for name in SHIPPED_BACKBONES:
            explain_one(name)


def time_one(backbone: str, size: int, repeats: int) -> None:
    """Seconds of one explained image beside a forward and backward pass, in turns."""
    module = ImageClassifier(["a", "b"], backbone, image_size=size).eval()
    explain, image = Explainer(module, size), torch.randn(1, 3, size, size)

    def pass_through() -> None:
        module.zero_grad()
        module(image)[0, 0].backward()

    pairs = time_in_turns(lambda: explain(image), pass_through, repeats)
    explained, passed = (statistics.median(each) for each in zip(*pairs, strict=True))
    print(f"{backbone} at {size} px, {torch.get_num_threads()} threads, {repeats} repeats")
    print(f"  explained {explained:.4f} s, forward and backward {passed:.4f} s, "
          f"ratio {format_estimate(ratio_estimate(pairs), 2)}", flush=True)  # fmt: skip


def hold(images: int) -> None:
    """Memory of the process after the first images and after all."""
    module = ImageClassifier(["a", "b"], "resnet10t", image_size=128)
    explain, image = Explainer(module, 128), torch.randn(1, 3, 128, 128)
    for at in range(images + 1):
        explain(image)
        if at == min(20, images // 2):
            before = held()
    hooks = sum(len(each._forward_hooks) for each in module.modules())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory after {min(20, images // 2)} images {before:.1f} MiB, after {images} "
          f"{held():.1f} MiB, peak {peak:.1f} MiB; hooks left {hooks}", flush=True)  # fmt: skip


def held() -> float:
    """MiB that the process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def explain_one(name: str) -> None:
    """One line: layer, map and seconds of a known backbone at its own size."""
    size = backbone_info(name).image_size
    module = ImageClassifier(["a", "b", "c", "d"], name, image_size=size)
    with torch.no_grad():
        module.net.get_classifier().weight.normal_()
    explain = Explainer(module, size)
    start = time.perf_counter()
    maps = explain(torch.randn(1, 3, size, size).expand(4, -1, -1, -1), range(4)).maps
    seconds, layer = (time.perf_counter() - start) / 4, explain.layers[0]
    lit = int((maps.std(axis=(1, 2)) > 0).sum())
    print(f"{name:<46} {layer.name:<14} {layer.layout} {layer.height:>2} x {layer.width:<2} "
          f"map {maps.shape[1:]}, {lit} of 4 classes lit, {seconds:.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
