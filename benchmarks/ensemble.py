"""An ensemble of four mixed members beside its bare forward passes and beside four separate tests.

python benchmarks/ensemble.py [--images 192] [--rounds 5] [--device cpu]
"""

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch

from datamodules import ImageDataModule, Phantoms
from datamodules.images import read_image
from datamodules.preprocess import Preprocess
from evaluation.reports.html import format_estimate
from evaluation.stats.estimate import ratio_estimate
from lightning_modules import EnsembleModule, ImageClassifier, checkpoints
from lightning_modules.pruning.measure import time_in_turns

CLASSES = ["none", "simple", "comminuted"]
MEMBERS = {  # backbone -> its own view
    "resnet18": Preprocess(size=224),
    "mobilenetv3_small_100": Preprocess(size=192, clahe=2.0),
    "convnext_atto": Preprocess(size=224),
    "efficientnet_b0": Preprocess(size=160),
}


def main() -> None:
    """Prints the ratios, each the median over rounds with its interval."""
    asked = arguments()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        data = source(Path(folder), asked.images)
        files = [member(name, view, data, Path(folder)) for name, view in MEMBERS.items()]
        ensemble = EnsembleModule(CLASSES, [str(file) for file in files])
        bare = Bare(files, data(Preprocess()), asked.device)
        others: dict[str, Callable[[], object]] = {
            "decode + bare forwards": bare,
            "four separate tests": lambda: [
                tested(checkpoints.load(file)[0], data(view), asked.device)
                for file, view in zip(files, MEMBERS.values(), strict=True)
            ],
        }
        for name, other in others.items():
            pairs = time_in_turns(
                lambda: tested(ensemble, data(Preprocess()), asked.device),
                other, asked.rounds, torch.device(asked.device),
            )  # fmt: skip
            ratio = format_estimate(ratio_estimate(pairs), 3)
            print(f"ensemble / {name}: {ratio}, {asked.images} images", flush=True)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    return parser.parse_args()


def source(folder: Path, images: int) -> Callable[[Preprocess], ImageDataModule]:
    """A data module for a view: generated 512 px pictures, nearly all of them in test."""
    pictures = Phantoms(
        "fracture",
        num_patients=images,
        images_per_patient=1,
        image_size=512,
        root=str(folder / "p"),
        val=0.1,
        test=0.8,
    )
    return lambda view: ImageDataModule(pictures, CLASSES, view, batch_size=16, num_workers=0)


def trainer(device: str, **more: object) -> L.Trainer:
    """A trainer that only works."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    accelerator = "gpu" if device == "cuda" else "cpu"
    options = {**quiet, "accelerator": accelerator, "devices": 1, "barebones": False, **more}
    return L.Trainer(use_distributed_sampler=False, enable_checkpointing=False, **options)


def member(
    name: str, view: Preprocess, data: Callable[[Preprocess], ImageDataModule], folder: Path
) -> Path:
    """A checkpoint of a member that has seen one batch."""
    fitting = trainer("cpu", max_steps=1, limit_val_batches=0, num_sanity_val_steps=0)
    fitting.fit(ImageClassifier(CLASSES, name, image_size=view.size), data(view))
    fitting.save_checkpoint(folder / f"{name}.ckpt")
    return folder / f"{name}.ckpt"


def tested(module: torch.nn.Module, data: ImageDataModule, device: str) -> None:
    """One `test` run."""
    trainer(device).test(module, data, verbose=False)


class Bare:
    """Decode, preprocess and forward in a plain loop, without anything of ours around it."""

    def __init__(self, files: list[Path], data: ImageDataModule, device: str) -> None:
        data.prepare_data()
        data.setup("test")
        self.paths = data.manifest.table["path"].iloc[data.rows("test")].tolist()
        loaded = [checkpoints.load(file) for file in files]
        self.nets = [module.to(device) for module, _ in loaded]
        self.views = [Preprocess.from_dict(block.preprocess) for _, block in loaded]
        self.device = device

    def __call__(self) -> None:
        """Goes through the split once."""
        with torch.inference_mode():
            for start in range(0, len(self.paths), 16):
                pictures = [read_image(path) for path in self.paths[start : start + 16]]
                for view in dict.fromkeys(self.views):
                    seen = torch.stack([view(p) for p in pictures]).to(self.device)
                    for net, own in zip(self.nets, self.views, strict=True):
                        if own == view:
                            net(seen).float().cpu()


if __name__ == "__main__":
    main()
