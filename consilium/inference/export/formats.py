"""Formats that a member can be exported to: how its file is made, and how the file answers."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors
from torch import Tensor, nn

from consilium.cli.words import needed
from lightning_modules import ImageClassifier, OneVsOneClassifier, checkpoints, packing
from lightning_modules.cam import at_rest

KEY = "consilium"  # the name of the metadata in every format
About = dict[str, Any]
Outputs = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """What is exported: normalized images (n, 3, H, W) in; logits out, of pairs for one-versus-one.

    Pairs are coupled outside, since no runtime but torch solves the linear systems.
    """

    def __init__(self, module: ImageClassifier, block: checkpoints.Block | None = None) -> None:
        super().__init__()
        self.block = block  # of the checkpoint that it was loaded from
        self.held = (module,)  # for its maps; not a submodule, whose weights would stand twice
        self.net: nn.Module = module.net
        self.head: Outputs | None = None if outputs_of(module) == "pair_logits" else module.logits

    def forward(self, image: Tensor) -> Tensor:
        """Logits (n, K), or pair logits (n, K(K-1)/2)."""
        outputs: Tensor = self.net(image)
        return outputs if self.head is None else self.head(outputs)


@dataclass(frozen=True)
class Format:
    """One way to carry a member.

    Args:
        suffix: of its file.
        write: the bytes of the file; the second argument is its metadata, plain values.
        read: what the file answers to images; the second argument is the same metadata.
        limit: how far a probability may lie from torch's before the export is refused.
        says: one line for `--help`.
    """

    suffix: str
    write: Callable[[Network, About], bytes]
    read: Callable[[Path, About], Outputs]
    limit: float
    says: str


def outputs_of(module: ImageClassifier) -> str:
    """What the exported network of a module gives."""
    return "pair_logits" if isinstance(module, OneVsOneClassifier) else "logits"


def to_onnx(network: Network, about: About) -> bytes:
    """ONNX with a free batch dimension, by torch's own exporter."""
    onnx = needed("onnx", "onnx")
    needed("onnxscript", "onnx")
    with quiet():
        program: Any = torch.onnx.export(
            network, (example(about),), dynamo=True, verbose=False,
            input_names=["image"], output_names=[about["output"]],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        )  # fmt: skip
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {KEY: json.dumps(about)})
    return bytes(proto.SerializeToString())


def from_onnx(file: Path, about: About) -> Outputs:
    """Answers by onnxruntime, on the processor, with as many threads as torch would use."""
    runtime = needed("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.cpu().numpy()})[0])


def to_torch_export(network: Network, about: About) -> bytes:
    """torch.export's archive; it loads without our code and without timm."""
    stream, batch = io.BytesIO(), {0: torch.export.Dim("batch")}
    with quiet():
        program = torch.export.export(network, (example(about),), dynamic_shapes={"image": batch})
        torch.export.save(program, stream, extra_files={KEY: json.dumps(about)})
    return stream.getvalue()


def from_torch_export(file: Path, about: About) -> Outputs:
    """The archive's program."""
    return torch.export.load(file).module()


def to_safetensors(network: Network, about: About) -> bytes:
    """The bare network's weights under timm's own names."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in network.net.state_dict().items()}
    return safetensors(state, {KEY: json.dumps(about)})


def from_safetensors(file: Path, about: About) -> Outputs:
    """The network built anew as the metadata says, with the file's weights."""
    return rebuilt(about, load_file(file))


def rebuilt(about: About, state: dict[str, Tensor]) -> Network:
    """The network that metadata and the weights of `net` describe."""
    said = {name: about[name] for name in ("module", "init_args", "class_names", "preprocess")}
    said["structure"] = about.get("structure")
    absent: dict[str, Any] = {f.name: None for f in fields(checkpoints.Block)}
    module = cast(ImageClassifier, checkpoints.build(checkpoints.Block(**{**absent, **said})))
    module.net.load_state_dict(state)
    return Network(module.eval().requires_grad_(False))


def to_packed(network: Network, about: About) -> bytes:
    """A checkpoint again, in float16 and with bitmaps where there are zeros."""
    if network.block is None:
        raise ValueError("packed: only a checkpoint can be packed")
    return checkpoints.packed(network.block, network.held[0].state_dict())


def from_packed(file: Path, about: About) -> Outputs:
    """The member that the file holds."""
    return Network(cast(ImageClassifier, checkpoints.load(file)[0]).requires_grad_(False))


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", to_onnx, from_onnx, 1e-4, "for onnxruntime and others; no torch"),
    "torch_export": Format(
        ".pt2", to_torch_export, from_torch_export, 1e-5, "torch.export's archive; no timm"
    ),
    "safetensors": Format(
        ".safetensors", to_safetensors, from_safetensors, 1e-5, "the weights alone, by timm's names"
    ),
    "packed": Format(
        packing.SUFFIX, to_packed, from_packed, 1e-2, "float16 and a bitmap of zeros; a checkpoint"
    ),
}


def write(
    kind: str, module: ImageClassifier, about: About, block: checkpoints.Block | None = None
) -> bytes:
    """The file of a module in eval mode; what its format cannot hold is one line."""
    with at_rest(module.net):  # recomputed stages cannot be exported
        network = Network(module, block).eval()
        try:
            return FORMATS[kind].write(network, about)
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            why = " ".join(str(error).split())[:300]
            raise ValueError(f"{about['backbone']} cannot be exported to {kind}: {why}") from error


def example(about: About) -> Tensor:
    """Two images: of one the exporters would believe that there is always one."""
    side = int(about["preprocess"]["size"])
    return torch.zeros(2, 3, side, side)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what the exporters say to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
