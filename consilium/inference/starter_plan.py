"""Which members `consilium init` proposes: probes and fine-tuned networks that fit a time."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
from timm.data import constants
from torch import nn

from datamodules.images import ImageError, read_image
from datamodules.preprocess import Preprocess
from lightning_modules import backbones
from lightning_modules.freezing import eval_mode

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
SAMPLED_IMAGES = 8  # read to measure their size and time
LARGEST_RATIO, SMALLEST_RATIO = 1.75, 1.25  # of an input that shows more detail than the published
SIZE_STEP = 32  # of the sizes of inputs, in pixels
PROBE_COST = 1.2  # of the features of an image, with the fit of the head
STARTUP_MINUTES = 0.5  # of a member: imports, evaluation, report
PROBE_SHARE = 0.5  # of the time at most for probes, if networks are fine-tuned as well
EPOCHS = (3, 10)  # of fine-tuning: fewer would not pay, more would not help
MIN_FINETUNED_IMAGES = 1_000  # with fewer, probes were better on fundus photographs
NORMALIZATIONS = (  # mean and std that pretraining commonly uses
    (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD),
    (constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD),
)
CLEARLY_CLOSER = 0.5  # of the divergence under the published normalization, to take another one


@dataclass(frozen=True)
class ImageSeconds:
    """Seconds that this machine, with all its cores, takes per image."""

    preparation: float  # decoding and preprocessing
    forward: float
    training: float  # a forward and a backward pass


@dataclass(frozen=True)
class Candidate:
    """A pretrained network in a weights file, and its time per image on this machine."""

    backbone: str
    weights: Path
    preprocess: Preprocess  # as in its pretraining, perhaps with a larger size
    seconds: ImageSeconds

    @property
    def has_other_normalization(self) -> bool:
        """Whether the network was clearly pretrained with another mean than timm records."""
        return self.preprocess.mean != Preprocess.from_backbone(self.backbone).mean


@dataclass(frozen=True)
class PlannedMember:
    """A member of the proposed experiment; with 0 epochs it is a linear probe."""

    candidate: Candidate
    epochs: int
    minutes: float

    @property
    def name(self) -> str:
        """`resnet50_224_probe` or `resnet50_224`, after the weights file and the input size."""
        name = f"{self.candidate.weights.stem}_{self.candidate.preprocess.size}"
        return name if self.epochs else f"{name}_probe"

    @property
    def summary(self) -> str:
        """What is trained, and how long it takes, in one line."""
        how = f"fine-tuned for {self.epochs} epochs" if self.epochs else "linear probe"
        size = f"{self.candidate.preprocess.size} px"
        return f"{self.name}: {how} at {size}, about {self.minutes:.0f} min"

    @property
    def recipe(self) -> str:
        """Name of the shipped training config: recipe/probe or recipe/probe_then_finetune."""
        return "recipe/probe_then_finetune" if self.epochs else "recipe/probe"


def find_candidates(paths: Sequence[Path], images: Sequence[str]) -> list[Candidate]:
    """The networks of weight files (or of all in a folder), timed on some images of the dataset.

    If the images have more detail than an input of the published size shows, the network with a
    larger input is a second candidate.
    """
    files = [
        file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])
    ]
    files = [file for file in files if file.suffix in SUFFIXES]
    if not files:
        places = ", ".join(map(str, paths))
        raise ValueError(f"--weights {places}: no weight file ({', '.join(SUFFIXES)})")
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"--weights {missing[0]}: no such file")
    backbone_of = {file.resolve(): backbone_of_file(file) for file in files}
    start = time.process_time()
    samples = read_samples(images)
    decoding = (time.process_time() - start) / max(1, len(samples)) / torch.get_num_threads()
    candidates = []
    for file, backbone in backbone_of.items():
        published = Preprocess.from_backbone(backbone)
        net = backbones.build(backbone, 2, pretrained=str(file))
        published = detect_normalization(net, published, samples)
        larger = larger_size(published.size, samples)
        for size in [published.size, *([larger] if larger else [])]:
            preprocess = replace(published, size=size)
            try:
                seconds = measure_seconds(backbone, preprocess, samples, decoding)
            except ValueError:  # the network has one size only
                continue
            candidates.append(Candidate(backbone, file, preprocess, seconds))
    return candidates


def read_samples(paths: Sequence[str]) -> list[np.ndarray]:
    """Up to SAMPLED_IMAGES evenly spaced images; those that cannot be read are left out."""
    samples = []
    for path in paths[:: max(1, len(paths) // SAMPLED_IMAGES)][:SAMPLED_IMAGES]:
        try:
            samples.append(read_image(path))
        except ImageError:
            continue
    return samples


def larger_size(published: int, samples: Sequence[np.ndarray]) -> int | None:
    """An input size that shows more detail of the samples than the published one, or None.

    Networks with pooled features gain from inputs of up to about 1.75 times their published size.
    """
    sides = [math.sqrt(image.shape[0] * image.shape[1]) for image in samples]
    side = min(np.median(sides), LARGEST_RATIO * published) if sides else 0
    size = int(side) // SIZE_STEP * SIZE_STEP
    return size if size >= SMALLEST_RATIO * published else None


def detect_normalization(
    net: nn.Module, published: Preprocess, samples: Sequence[np.ndarray]
) -> Preprocess:
    """`published`, with another mean and std if the network was clearly trained with those.

    The first batch norm has stored the mean and variance that its inputs had in pretraining. Inputs
    from other images have similar ones only if normalized as in pretraining.
    """
    norm = next((module for module in net.modules() if isinstance(module, nn.BatchNorm2d)), None)
    if norm is None or not samples:
        return published
    inputs = list[torch.Tensor]()
    handle = norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    options = [published, *(replace(published, mean=m, std=s) for m, s in NORMALIZATIONS)]
    with torch.inference_mode(), eval_mode(net):
        for preprocess in options:
            net(torch.stack([preprocess(image) for image in samples]))
    handle.remove()
    divergences = [_divergence_from_statistics(norm, values) for values in inputs]
    best = int(np.argmin(divergences))
    return options[best] if divergences[best] < CLEARLY_CLOSER * divergences[0] else published


def _divergence_from_statistics(norm: nn.BatchNorm2d, inputs: torch.Tensor) -> float:
    """Median over channels of KL(normal of the inputs (n, C, H, W), normal stored in the norm)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance, mean = torch.var_mean(inputs, dim=(0, 2, 3))
    ratio = (variance + norm.eps) / (norm.running_var + norm.eps)
    shift = (mean - norm.running_mean).square() / (norm.running_var + norm.eps)
    return float((ratio + shift - 1 - ratio.log()).median()) / 2


def backbone_of_file(file: Path) -> str:
    """The timm name that the file's name begins with; raises ValueError if there is none."""
    if timm.is_model(file.stem):  # perhaps with a tag of timm
        return file.stem
    names = [name for name in timm.list_models() if file.stem.startswith(name)]
    if not names:
        message = "its name does not begin with that of a network (consilium backbones)"
        raise ValueError(f"--weights {file}: {message}")
    return str(max(names, key=len))


def measure_seconds(
    backbone: str, preprocess: Preprocess, samples: Sequence[np.ndarray], decoding: float
) -> ImageSeconds:
    """Seconds of the network per image, measured on samples; `decoding` are those to read one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = backbones.build(backbone, 2, image_size=preprocess.size).to(device)
    images = [*samples] or [np.zeros((preprocess.size, preprocess.size), np.uint8)]
    images = [images[i % len(images)] for i in range(SAMPLED_IMAGES)]
    batch = torch.stack([preprocess(image) for image in images]).to(device)

    def forward() -> None:
        """A forward pass, with its result on the CPU."""
        with torch.inference_mode(), eval_mode(net):
            net(batch).cpu()

    def train() -> None:
        """A forward and a backward pass, completed."""
        net(batch).square().sum().backward()
        if batch.is_cuda:
            torch.cuda.synchronize()

    cpu = torch.device("cpu")
    preparation = least_seconds(lambda: [preprocess(image) for image in images], cpu)
    passes = [least_seconds(function, device) / SAMPLED_IMAGES for function in (forward, train)]
    return ImageSeconds(decoding + preparation / SAMPLED_IMAGES, *passes)


def least_seconds(function: Callable[[], object], device: torch.device) -> float:
    """The least seconds of three calls after a first one.

    On a CPU it is the processor time divided by the number of threads, so that other programs do
    not count.
    """
    on_cpu = device.type == "cpu"
    timer, seconds = time.process_time if on_cpu else time.perf_counter, []
    for _ in range(4):
        start = timer()
        function()
        seconds.append(timer() - start)
    return min(seconds[1:]) / (torch.get_num_threads() if on_cpu else 1)


def plan_members(
    candidates: Sequence[Candidate], num_train: int, num_evaluated: int, minutes: float
) -> list[PlannedMember]:
    """Chooses linear probes that fit into the minutes, and fine-tunes some networks in their place.

    The fastest come first. Remaining time is spent on larger inputs, then on more epochs of the
    fine-tuned networks.
    """
    fewest, most = EPOCHS
    by_time = sorted(candidates, key=lambda candidate: candidate.seconds.forward)
    smallest = {c.weights: c for c in sorted(by_time, key=lambda c: -c.preprocess.size)}
    by_time.sort(key=lambda candidate: smallest[candidate.weights] != candidate)  # larger: last
    can_finetune = num_train >= MIN_FINETUNED_IMAGES

    def member(candidate: Candidate, epochs: int) -> PlannedMember:
        """A candidate with an estimate of its minutes; with 0 epochs it is a linear probe."""
        of = candidate.seconds
        predicted = PROBE_COST * num_train + num_evaluated + epochs * num_evaluated / 2
        seconds = predicted * (of.preparation + of.forward)
        seconds += epochs * num_train * (of.preparation + of.training)
        return PlannedMember(candidate, epochs, STARTUP_MINUTES + seconds / 60)

    members = {by_time[0].weights: member(by_time[0], 0)}

    def add_if_it_fits(new: PlannedMember, limit: float) -> None:
        """Adds or replaces the member with the same weights file, if `limit` minutes allow it."""
        weights = new.candidate.weights
        if sum(members[m].minutes for m in members if m != weights) + new.minutes <= limit:
            members[weights] = new

    for candidate in by_time:
        add_if_it_fits(member(candidate, 0), minutes * (PROBE_SHARE if can_finetune else 1))
    if can_finetune:
        for candidate in by_time:
            add_if_it_fits(member(candidate, fewest), minutes)
    for epochs in range(fewest + 1, most + 1):
        for chosen in [m for m in members.values() if m.epochs]:
            add_if_it_fits(member(chosen.candidate, epochs), minutes)
    return list(members.values())
