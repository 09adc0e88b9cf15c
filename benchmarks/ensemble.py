"""Time of an ensemble's evaluation beside its forward passes alone and beside separate tests.

Run: python -W ignore -m benchmarks.ensemble [--images N] [--rounds N] [--device cpu|cuda]
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import lightning as L
import torch

from consilium.training.lightning_cli import silence_lightning
from datamodules import ImageDataModule, Phantoms
from datamodules.images import read_image
from datamodules.preprocess import Preprocess
from evaluation.reports.html import format_estimate
from evaluation.stats.estimate import ratio_estimate
from lightning_modules import EnsembleModule, ImageClassifier, checkpoints
from lightning_modules.pruning.measure import time_in_turns

CLASS_NAMES = ["none", "simple", "comminuted"]
MEMBERS = {  # backbone -> its preprocessing
    "resnet18": Preprocess(size=224),
    "mobilenetv3_small_100": Preprocess(size=192, clahe=2.0),
    "convnext_atto": Preprocess(size=224),
    "efficientnet_b0": Preprocess(size=160),
}
BATCH_SIZE = 16
MakeData = Callable[[Preprocess], ImageDataModule]


def main() -> None:
    """Prints both ratios: the median over rounds with its interval."""
    args = parse_arguments()
    device = torch.device(args.device)
    silence_lightning()
    with tempfile.TemporaryDirectory() as folder:
        make_data = generate_data(Path(folder), args.images)
        checkpoint_files = write_members(make_data, Path(folder))
        ensemble = EnsembleModule(CLASS_NAMES, [str(file) for file in checkpoint_files])
        forward_passes = ForwardPasses(checkpoint_files, make_data(Preprocess()), device)

        def test_ensemble() -> None:
            test(ensemble, make_data(Preprocess()), args.device)

        def test_members() -> None:
            for file, preprocess in zip(checkpoint_files, MEMBERS.values(), strict=True):
                test(checkpoints.load(file)[0], make_data(preprocess), args.device)

        others: dict[str, Callable[[], None]] = {
            "decoding and forward passes": forward_passes,
            "four separate tests": test_members,
        }
        for name, other in others.items():
            pairs = time_in_turns(test_ensemble, other, args.rounds, device)
            ratio = format_estimate(ratio_estimate(pairs), 3)
            print(f"ensemble / {name}: {ratio}, {args.images} images", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The arguments of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=192, help="generated images (192)")
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison (5)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    return parser.parse_args()


def generate_data(folder: Path, num_images: int) -> MakeData:
    """A function from a Preprocess to a data module of 512 px images, most of them in test."""
    source = Phantoms(
        "fracture",
        num_patients=num_images,
        images_per_patient=1,
        image_size=512,
        root=str(folder / "images"),
        val=0.1,
        test=0.8,
    )
    return lambda preprocess: ImageDataModule(
        source, CLASS_NAMES, preprocess, batch_size=BATCH_SIZE, num_workers=0
    )


def make_trainer(device: str, max_steps: int = -1) -> L.Trainer:
    """A trainer without logger, checkpoints, validation and progress bar."""
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        max_steps=max_steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def write_members(
    make_data: MakeData, folder: Path, members: Mapping[str, Preprocess] = MEMBERS
) -> list[Path]:
    """Checkpoints of all members after one training step."""
    files = []
    for name, preprocess in members.items():
        trainer, file = make_trainer("cpu", max_steps=1), folder / f"{name}.ckpt"
        module = ImageClassifier(CLASS_NAMES, name, image_size=preprocess.size)
        trainer.fit(module, make_data(preprocess))
        trainer.save_checkpoint(file)
        files.append(file)
    return files


def test(module: L.LightningModule, data: ImageDataModule, device: str) -> None:
    """Evaluates a module on the test split."""
    make_trainer(device).test(module, data, verbose=False)


class ForwardPasses:
    """Decoding, preprocessing and forward passes of all members in a plain loop."""

    def __init__(self, files: list[Path], data: ImageDataModule, device: torch.device) -> None:
        data.prepare_data()
        data.setup("test")
        self.paths = data.manifest.table["path"].iloc[data.rows("test")].tolist()
        loaded = [checkpoints.load(file) for file in files]
        self.modules = [module.to(device) for module, _ in loaded]
        self.preprocesses = [Preprocess.from_dict(block.preprocess) for _, block in loaded]
        self.device = device

    @torch.inference_mode()
    def __call__(self) -> None:
        """Runs all members on the test split once."""
        for start in range(0, len(self.paths), BATCH_SIZE):
            images = [read_image(path) for path in self.paths[start : start + BATCH_SIZE]]
            for preprocess in dict.fromkeys(self.preprocesses):
                batch = torch.stack([preprocess(image) for image in images]).to(self.device)
                for module, own_preprocess in zip(self.modules, self.preprocesses, strict=True):
                    if own_preprocess == preprocess:
                        module(batch).float().cpu()


if __name__ == "__main__":
    main()
