"""Time of a linear probe: features of all images beside bare forward passes, and its head.

Run: python -m benchmarks.probe [--images N] [--size PX] [--backbone NAME]

The features are computed from JPEG files and stored; the bare forward passes get a batch that is
in memory already, with the same number of threads. Then a second fit uses the stored features.
"""

import argparse
import tempfile
from pathlib import Path

import lightning
import numpy as np
import torch

from benchmarks.loader import write_files
from benchmarks.resources import Stopwatch
from callbacks import LinearProbe
from consilium.training.lightning_cli import silence_lightning
from datamodules import Folders, ImageDataModule
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from lightning_modules.features import FeatureExtractor
from lightning_modules.freezing import eval_mode

BATCH_SIZE, BARE_BATCHES = 32, 20


class TimedProbe(LinearProbe):
    """Records how long the features and the head took."""

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Times everything; what is left beside the features is the head."""
        watch = Stopwatch()
        super().on_fit_start(trainer, pl_module)
        self.head_seconds = watch.wall - self.feature_seconds

    def _training_features(
        self, extractor: FeatureExtractor, data: ImageDataModule
    ) -> tuple[np.ndarray, np.ndarray]:
        watch = Stopwatch()
        features = super()._training_features(extractor, data)
        self.feature_seconds = watch.wall
        return features


def main() -> None:
    """Prints images per second of both, their ratio, and the seconds of both fits."""
    args = parse_arguments()
    silence_lightning()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_files(root / "set", args.images, args.size)
        names = sorted(path.name for path in (root / "set" / "train").iterdir())
        preprocess = Preprocess(size=args.size)
        data = ImageDataModule(
            Folders(str(root / "set"), patient=None), names, preprocess,
            batch_size=BATCH_SIZE, allow_leaks=True,  # files of val are copies
        )  # fmt: skip
        bare = bare_speed(ImageClassifier(names, args.backbone), args.size)
        for fit in ("first", "second"):
            torch.manual_seed(0)
            module = ImageClassifier(names, args.backbone, optimizer={"name": "sgd", "lr": 0.0})
            probe = TimedProbe(str(root / "features"))
            trainer = lightning.Trainer(
                max_epochs=1, limit_train_batches=1, limit_val_batches=0, logger=False,
                enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
                callbacks=[probe],
            )  # fmt: skip
            trainer.fit(module, data)
            speed = args.images / probe.feature_seconds
            print(f"{fit} fit: features {speed:.1f} images/s, {speed / bare:.2f} of bare forward "
                  f"passes ({bare:.1f}); head {probe.head_seconds:.1f} s")  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """The arguments of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5232, help="training images (5232)")
    parser.add_argument("--size", type=int, default=224, help="in pixels (224)")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    return parser.parse_args()


def bare_speed(module: ImageClassifier, size: int) -> float:
    """Images per second of forward passes of the network alone."""
    batch = torch.randn(BATCH_SIZE, 3, size, size)
    with torch.inference_mode(), eval_mode(module.net):
        module.net(batch)
        watch = Stopwatch()
        for _ in range(BARE_BATCHES):
            module.net(batch)
    return BARE_BATCHES * BATCH_SIZE / watch.wall


if __name__ == "__main__":
    main()
