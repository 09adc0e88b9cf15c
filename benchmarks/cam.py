"""Time of an image with its saliency map, and memory of a process that explains many images.

Run: python -m benchmarks.cam [--backbone NAME] [--size PX] [--images N] [--repeats N] [--all]
"""

import argparse
import gc
import resource
import statistics
import time
from pathlib import Path

import torch

from benchmarks.resources import peak_memory
from evaluation.reports.html import format_estimate
from evaluation.stats.estimate import ratio_estimate
from lightning_modules import ImageClassifier
from lightning_modules.cam import Explainer
from lightning_modules.model_info import SHIPPED_BACKBONES, backbone_info
from lightning_modules.pruning.measure import time_in_turns


def main() -> None:
    """Prints the ratio of times, the memory and, with --all, one line per shipped backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="densenet121", help="timed backbone (densenet121)")
    parser.add_argument("--size", type=int, default=224, help="image size in pixels (224)")
    parser.add_argument("--images", type=int, default=200, help="explained for the memory (200)")
    parser.add_argument("--repeats", type=int, default=15, help="of each timing (15)")
    parser.add_argument("--all", action="store_true", help="explain with every shipped backbone")
    args = parser.parse_args()
    torch.manual_seed(0)
    print_time_ratio(args.backbone, args.size, args.repeats)
    print_memory(args.images)
    if args.all:
        for name in SHIPPED_BACKBONES:
            print_backbone(name)


def print_time_ratio(backbone: str, size: int, repeats: int) -> None:
    """Times one explained image beside one forward and backward pass, in turns."""
    module = ImageClassifier(["a", "b"], backbone, image_size=size).eval()
    explain, image = Explainer(module, size), torch.randn(1, 3, size, size)

    def forward_and_backward() -> None:
        module.zero_grad()
        module(image)[0, 0].backward()

    pairs = time_in_turns(lambda: explain(image), forward_and_backward, repeats)
    with_map, without_map = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    print(f"{backbone} at {size} px, {torch.get_num_threads()} threads, {repeats} repeats")
    print(f"  image with map {with_map:.4f} s, forward and backward {without_map:.4f} s, "
          f"ratio {format_estimate(ratio_estimate(pairs), 2)}", flush=True)  # fmt: skip


def print_memory(num_images: int) -> None:
    """Memory of this process after the first images and after all, and hooks left behind."""
    module = ImageClassifier(["a", "b"], "resnet10t", image_size=128)
    explain, image = Explainer(module, 128), torch.randn(1, 3, 128, 128)
    num_first = min(20, num_images // 2)
    for _ in range(num_first):
        explain(image)
    first = resident_memory()
    for _ in range(num_images - num_first):
        explain(image)
    hooks = sum(len(child._forward_hooks) for child in module.modules())
    print(f"memory after {num_first} images {first:.1f} MiB, after {num_images} "
          f"{resident_memory():.1f} MiB, peak {peak_memory():.1f} MiB; {hooks} hooks left",
          flush=True)  # fmt: skip


def resident_memory() -> float:
    """Resident memory of this process in MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def print_backbone(name: str) -> None:
    """CAM layer, map and time of a shipped backbone at its own image size."""
    size = backbone_info(name).image_size
    module = ImageClassifier(["a", "b", "c", "d"], name, image_size=size)
    with torch.no_grad():
        module.net.get_classifier().weight.normal_()
    explain = Explainer(module, size)
    start = time.perf_counter()
    maps = explain(torch.randn(1, 3, size, size).expand(4, -1, -1, -1), range(4)).maps
    seconds, layer = (time.perf_counter() - start) / 4, explain.layers[0]
    num_not_empty = int((maps.std(axis=(1, 2)) > 0).sum())
    print(f"{name:<46} {layer.name:<14} {layer.layout} {layer.height:>2} x {layer.width:<2} "
          f"map {maps.shape[1:]}, {num_not_empty} of 4 maps not empty, {seconds:.2f} s"
          )  # fmt: skip


if __name__ == "__main__":
    main()
