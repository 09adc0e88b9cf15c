"""Which members `consilium init` proposes: probes and fine-tuned networks that fit a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from datamodules.images import ImageError, read_image
from datamodules.preprocess import Preprocess
from lightning_modules import backbones
from lightning_modules.freezing import eval_mode

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
TIMED_IMAGES = 8
TRAINING_COST = 3.5  # of a training step in forward passes, as measured on CPUs
PROBE_COST = 1.2  # of the features of an image, with the fit of the head
STARTUP_MINUTES = 0.5  # of a member: imports, evaluation, report
PROBE_SHARE = 0.5  # of the time at most for probes; fine-tuning gets the rest
EPOCHS = range(3, 11)  # of fine-tuning: fewer would not pay
MAX_FINETUNED = 2


@dataclass(frozen=True)
class Candidate:
    """A pretrained network at hand, and what it costs on this machine."""

    backbone: str
    weights: Path
    preprocess: Preprocess  # as in its pretraining
    seconds: float  # of decoding an image and a forward pass


@dataclass(frozen=True)
class PlannedMember:
    """A member of the proposed experiment; 0 epochs are a probe."""

    candidate: Candidate
    epochs: int
    minutes: float

    @property
    def name(self) -> str:
        """`resnet50_probe` or `resnet50`, after the file of the weights."""
        return f"{self.candidate.weights.stem}{'' if self.epochs else '_probe'}"

    @property
    def summary(self) -> str:
        """What is trained, and how long it takes, in one line."""
        how = f"fine-tuned for {self.epochs} epochs" if self.epochs else "linear probe"
        size = f"{self.candidate.preprocess.size} px"
        return f"{self.name}: {how} at {size}, about {self.minutes:.0f} min"

    @property
    def recipe(self) -> str:
        """Name of its config file."""
        return "recipe/probe_then_finetune" if self.epochs else "recipe/probe"


def find_candidates(paths: Sequence[Path], images: Sequence[str]) -> list[Candidate]:
    """The networks of weight files, or of all weight files in folders, timed on some images."""
    files = [
        file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])
    ]
    files = [file for file in files if file.suffix in SUFFIXES]
    if not files:
        places = ", ".join(map(str, paths))
        raise ValueError(f"--weights {places}: no weight file ({', '.join(SUFFIXES)})")
    return [_candidate(file, images) for file in files]


def _candidate(file: Path, images: Sequence[str]) -> Candidate:
    if not file.is_file():
        raise ValueError(f"--weights {file}: no such file")
    backbone = backbone_of_file(file)
    expected = Preprocess.from_backbone(backbone)
    return Candidate(backbone, file.resolve(), expected, time_image(backbone, expected, images))


def backbone_of_file(file: Path) -> str:
    """The network that the name of a weight file begins with."""
    if timm.is_model(file.stem):  # perhaps with a tag of timm
        return file.stem
    names = [name for name in timm.list_models() if file.stem.startswith(name)]
    if not names:
        message = "its name does not begin with that of a network (consilium backbones)"
        raise ValueError(f"--weights {file}: {message}")
    return str(max(names, key=len))


def time_image(backbone: str, preprocess: Preprocess, images: Sequence[str]) -> float:
    """Seconds to decode an image and to predict it in a batch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = backbones.build(backbone, 2, image_size=preprocess.size).to(device)
    start, inputs = time.perf_counter(), []
    for path in images[:TIMED_IMAGES]:
        try:
            inputs.append(preprocess(read_image(path)))
        except ImageError:
            continue
    inputs = inputs or [torch.zeros(3, preprocess.size, preprocess.size)]  # the audit names them
    decoding = (time.perf_counter() - start) / len(inputs)
    batch = torch.stack(inputs).to(device)
    seconds = []
    with torch.inference_mode(), eval_mode(net):
        for _ in range(3):
            start = time.perf_counter()
            net(batch).cpu()
            seconds.append(time.perf_counter() - start)
    return decoding + min(seconds) / len(inputs)


def plan_members(
    candidates: Sequence[Candidate], num_train: int, num_evaluated: int, minutes: float
) -> list[PlannedMember]:
    """Probes, the fastest first, and fine-tuned networks, the largest first, within the time."""
    members, remaining = list[PlannedMember](), minutes
    for candidate in sorted(candidates, key=lambda c: c.seconds):
        cost = STARTUP_MINUTES + _minutes(candidate, PROBE_COST * num_train + num_evaluated)
        if not members or minutes - remaining + cost <= PROBE_SHARE * minutes:
            members.append(PlannedMember(candidate, 0, cost))
            remaining -= cost
    for candidate in sorted(candidates, key=lambda c: -c.seconds):
        fixed = STARTUP_MINUTES + _minutes(candidate, PROBE_COST * num_train + num_evaluated)
        of_epoch = _minutes(candidate, TRAINING_COST * num_train + num_evaluated / 2)
        epochs = min(EPOCHS[-1], int((remaining - fixed) / of_epoch))
        count = sum(member.epochs > 0 for member in members)
        if epochs >= EPOCHS[0] and count < MAX_FINETUNED:
            members.append(PlannedMember(candidate, epochs, fixed + epochs * of_epoch))
            remaining -= members[-1].minutes
    return members


def _minutes(candidate: Candidate, images: float) -> float:
    return candidate.seconds * images / 60
