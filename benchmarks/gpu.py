"""Every measurement that needs a GPU, in one run of at most eight minutes.

Run: python -m benchmarks.gpu [-o runs/gpu] [--minutes 8] [--tiny] [--only ROW...]
Writes gpu.json and gpu.md. A row whose package is missing, or that fails, states the reason and the
others go on; rows that no longer fit into the time are named. `--tiny` measures the smallest
networks on the CPU, so that the script can be tested without a GPU.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.ensemble import MEMBERS
from consilium.training.lightning_cli import silence_lightning
from datamodules.preprocess import Preprocess
from evaluation.files import write_json, write_text
from evaluation.reports.html import format_estimate
from evaluation.stats.estimate import Estimate, ratio_estimate
from lightning_modules import ImageClassifier
from lightning_modules.cam import Explainer
from lightning_modules.pruning.measure import describe_device, time_in_turns

CLASSES = ["none", "simple", "comminuted"]
ENSEMBLE = ("convnextv2_base", "tf_efficientnetv2_s", "maxvit_tiny_tf_224",
            "swin_tiny_patch4_window7_224")  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """What is measured: the shipped networks, or the smallest ones."""

    device: torch.device
    trained: Sequence[tuple[str, int, int]]  # backbone, image size and batch size
    ensemble: Sequence[str]
    files: Mapping[str, Preprocess]  # members that are evaluated from checkpoints
    pruned: tuple[str, int]  # backbone and image size
    batch_sizes: Sequence[int]  # of inference
    images: int  # of a training epoch, and generated ones
    pairs: int  # of measurements in turns


@dataclass(frozen=True)
class Row:
    """One measurement: a value with its unit, and a ratio to what it is compared with."""

    name: str
    value: float | None = None
    unit: str = ""
    ratio: Estimate | None = None
    compared_with: str = ""
    note: str = ""


@dataclass
class Benchmark:
    """Runs rows until the time is over."""

    scale: Scale
    deadline: float
    rows: list[Row] = field(default_factory=list)

    def run(self, name: str, measure: Callable[[Scale], Iterator[Row]]) -> None:
        """Adds the rows of a measurement, or the reason why there is none."""
        if time.monotonic() > self.deadline:
            self.rows.append(Row(name, note="not measured: the time was over"))
            return
        try:
            for row in measure(self.scale):
                self.rows.append(row)
                print(markdown_row(row), flush=True)
        except Exception as error:  # whatever is missing on a machine, the others go on
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.rows.append(Row(name, note=f"not measured: {reason}"))
            print(markdown_row(self.rows[-1]), flush=True)


def main() -> None:
    """Measures all rows and writes both files."""
    args = parse_arguments()
    scale = tiny_scale() if args.tiny else full_scale()
    benchmark = Benchmark(scale, time.monotonic() + 60 * args.minutes)
    silence_lightning()
    print(describe_device(scale.device))
    for name in args.only:
        benchmark.run(name, MEASUREMENTS[name])
    device = describe_device(scale.device)
    write_json(
        args.output / "gpu.json", {"device": device, "rows": list(map(asdict, benchmark.rows))}
    )
    head = f"{device}\n\n| measurement | value | ratio | compared with |\n|---|---|---|---|\n"
    write_text(args.output / "gpu.md", head + "\n".join(map(markdown_row, benchmark.rows)) + "\n")
    print(f"{args.output}/gpu.md")


def parse_arguments() -> argparse.Namespace:
    """The arguments of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/gpu"), help="(runs/gpu)")
    parser.add_argument("--minutes", type=float, default=8, help="after which no row starts (8)")
    parser.add_argument("--tiny", action="store_true", help="the smallest networks, on the CPU")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    return parser.parse_args()


def full_scale() -> Scale:
    """The networks of the shipped experiments on the GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("no GPU was found; --tiny measures the smallest networks on the CPU")
    trained = [("efficientnet_b2", 260, 64), ("swin_tiny_patch4_window7_224", 224, 64)]
    device, pruned = torch.device("cuda"), ("efficientnet_b2", 260)
    return Scale(device, trained, ENSEMBLE, MEMBERS, pruned, (1, 8, 64), images=1024, pairs=10)


def tiny_scale() -> Scale:
    """The smallest networks on the CPU."""
    torch.set_num_threads(1)
    device, names = torch.device("cpu"), ("test_resnet", "test_efficientnet")
    files = {name: Preprocess(size=64) for name in names}
    return Scale(device, [("test_resnet", 32, 4)], names, files, ("test_resnet", 32), (1, 2), 96, 2)


def markdown_row(row: Row) -> str:
    """A row of the table."""
    value = row.note if row.value is None else f"{row.value:.4g} {row.unit}"
    ratio = "" if row.ratio is None else format_estimate(row.ratio, 3)
    return f"| {row.name} | {value} | {ratio} | {row.compared_with} |"


def training(scale: Scale) -> Iterator[Row]:
    """Images per second of `fit` in bf16, beside a plain loop, and compiled."""
    from benchmarks import fit

    for backbone, size, batch in scale.trained:
        is_gpu = scale.device.type == "cuda"
        for is_compiled in (False, True) if is_gpu else (False,):  # minutes on a CPU
            precision = "bf16" if is_gpu else "32"
            args = argparse.Namespace(
                backbone=backbone, image_size=size, batch=batch, images=scale.images,
                device=scale.device.type, precision=precision, compile=is_compiled,
            )  # fmt: skip
            loader = fit.make_loader(args)
            ours, plain = (make(args, loader) for make in (fit.lightning_fit, fit.baseline))
            pairs = time_in_turns(ours, plain, max(2, scale.pairs // 4), scale.device)
            seconds = statistics.median(first for first, _ in pairs)
            name = f"fit {backbone} at {size} px, batch {batch}{', compiled' * is_compiled}"
            rate = args.images / seconds
            yield Row(name, rate, "images/s", ratio_estimate(pairs), "time of a plain loop")


def ensemble(scale: Scale) -> Iterator[Row]:
    """Milliseconds per image of an ensemble's prediction, beside its bare forward passes."""
    from consilium.inference.predictor import Member, Predictor
    from evaluation.voters.simple import Soft
    from evaluation.voters.store import FittedEnsemble

    members = []
    for name in scale.ensemble:
        view = Preprocess.from_backbone(name)
        module = ImageClassifier(CLASSES, name, image_size=view.size).to(scale.device).eval()
        members.append(Member(name, name, view, [0, 1, 2], module, Explainer(module, view.size)))
    fitted = FittedEnsemble(Soft(), [m.name for m in members], CLASSES)
    predictor = Predictor(members, fitted, scale.device)
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for batch in scale.batch_sizes:
        inputs = [predictor.preprocess(image)] * batch
        on_device = {k: torch.stack([i[k] for i in inputs]).to(scale.device) for k in inputs[0]}

        @torch.inference_mode()
        def forward(inputs: dict[str, torch.Tensor] = on_device) -> None:
            for member in members:
                member.require_module()(inputs[member.preprocess.name])

        predict = partial(predictor.predict_batch, inputs, [""] * batch)
        pairs = time_in_turns(predict, forward, scale.pairs, scale.device)
        milliseconds = 1000 * statistics.median(first for first, _ in pairs) / batch
        yield Row(f"ensemble of {len(members)}, batch {batch}", milliseconds, "ms per image",
                  ratio_estimate(pairs), "forward passes alone")  # fmt: skip


def evaluation(scale: Scale) -> Iterator[Row]:
    """An ensemble's evaluation with exact counts beside decoding and forward passes in a loop."""
    from benchmarks import ensemble as of_files
    from lightning_modules import EnsembleModule

    with tempfile.TemporaryDirectory() as folder:
        make_data = of_files.generate_data(Path(folder), scale.images)
        files = of_files.write_members(make_data, Path(folder), scale.files)
        module = EnsembleModule(CLASSES, [str(file) for file in files])
        loop = of_files.ForwardPasses(files, make_data(Preprocess()), scale.device)
        test = partial(of_files.test, module, make_data(Preprocess()), scale.device.type)
        pairs = time_in_turns(test, loop, max(2, scale.pairs // 3), scale.device)
        seconds = statistics.median(first for first, _ in pairs)
        name, rate = f"evaluation of {len(files)} members, one process", len(loop.paths) / seconds
        others = "time of decoding and forward passes"
        yield Row(name, rate, "images/s", ratio_estimate(pairs), others)


def memory(scale: Scale) -> Iterator[Row]:
    """Peak memory of an ensemble, and of one whose members are loaded one at a time."""
    from benchmarks import ensemble as of_files
    from benchmarks import memory as of_memory

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args = argparse.Namespace(images=min(256, scale.images), device=scale.device.type)
        make_data = of_files.generate_data(folder, args.images)
        files = of_files.write_members(make_data, folder, scale.files)
        for subject, flags in (("all members", ()), ("one at a time", ("--one-at-a-time",))):
            peak = of_memory.measure_in_process(folder, files, args, *flags)
            yield Row(f"peak memory, {subject}", peak / 2**20, "MiB")


def sparse(scale: Scale) -> Iterator[Row]:
    """Inference with masked weights, and with pruned channels, beside the dense network."""
    from benchmarks import sparse as of_sparse
    from lightning_modules.pruning.search import PruningTarget, choose_structure
    from lightning_modules.pruning.structure import pruned_copy

    backbone, size = scale.pruned
    args = argparse.Namespace(backbone=backbone, size=size, batch=2, device=torch.device("cpu"))
    dense, image = of_sparse.make_dense(args)
    masked, _ = of_sparse.make_dense(args)
    of_sparse.mask(masked, image)
    losses = of_sparse.random_losses(dense.eval(), args)
    structure = choose_structure(
        dense, image, backbone, PruningTarget(macs=0.6, latency=None), losses
    )
    nets = {"masked": masked, "channels pruned": pruned_copy(dense, structure)}
    dense = dense.to(scale.device).eval()
    for (kind, net), batch in ((item, n) for item in nets.items() for n in scale.batch_sizes):
        images = torch.randn(batch, 3, size, size, device=scale.device)
        other = net.to(scale.device).eval()
        with torch.inference_mode():
            pairs = time_in_turns(partial(other, images), partial(dense, images), scale.pairs,
                                  scale.device)  # fmt: skip
        milliseconds = 1000 * statistics.median(first for first, _ in pairs) / batch
        yield Row(f"{backbone}, {kind}, batch {batch}", milliseconds, "ms per image",
                  ratio_estimate(pairs), "the dense network")  # fmt: skip


def saliency(scale: Scale) -> Iterator[Row]:
    """A prediction with its map beside a forward and a backward pass."""
    backbone, size, _ = scale.trained[0]
    module = ImageClassifier(CLASSES, backbone, image_size=size).to(scale.device).eval()
    explain, image = Explainer(module, size), torch.randn(1, 3, size, size, device=scale.device)

    def forward_and_backward() -> None:
        module.zero_grad()
        cross_entropy(
            module(image), torch.zeros(1, dtype=torch.int64, device=scale.device)
        ).backward()

    pairs = time_in_turns(lambda: explain(image), forward_and_backward, scale.pairs, scale.device)
    milliseconds = 1000 * statistics.median(first for first, _ in pairs)
    yield Row(f"prediction with map, {backbone}", milliseconds, "ms", ratio_estimate(pairs),
              "forward and backward")  # fmt: skip


def precision(scale: Scale) -> Iterator[Row]:
    """Inference in bf16 beside single precision."""
    backbone, size, _ = scale.trained[0]
    net: nn.Module = ImageClassifier(CLASSES, backbone, image_size=size).to(scale.device).eval()
    for batch in scale.batch_sizes:
        images = torch.randn(batch, 3, size, size, device=scale.device)

        def in_bf16(images: torch.Tensor = images) -> None:
            with torch.autocast(scale.device.type, torch.bfloat16):
                net(images)

        with torch.inference_mode():
            pairs = time_in_turns(in_bf16, partial(net, images), scale.pairs, scale.device)
        milliseconds = 1000 * statistics.median(first for first, _ in pairs) / batch
        yield Row(f"{backbone} in bf16, batch {batch}", milliseconds, "ms per image",
                  ratio_estimate(pairs), "single precision")  # fmt: skip


MEASUREMENTS: dict[str, Callable[[Scale], Iterator[Row]]] = {
    "training": training, "ensemble": ensemble, "evaluation": evaluation, "memory": memory,
    "sparse": sparse, "saliency": saliency, "precision": precision,
}  # fmt: skip


if __name__ == "__main__":
    main()
