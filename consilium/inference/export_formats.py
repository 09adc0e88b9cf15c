"""The registry of export formats: how a member's file is written, read and verified."""

import io
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from consilium.inference.predictor import require_image_classifier
from lightning_modules import ImageClassifier, checkpoints, packing
from lightning_modules.cam import frozen_for_inference

KEY = "consilium"  # of the metadata, in every format
FREE_BATCH_SIZE = {"image": {0: torch.export.Dim("batch")}}
Metadata = dict[str, Any]
OutputFunction = Callable[[Tensor], Tensor]


class ExportNetwork(nn.Module):
    """Maps normalized images (n, 3, H, W) to logits (n, K), or to pair logits of one-vs-one."""

    classifier: ImageClassifier

    def __init__(self, classifier: ImageClassifier, block: checkpoints.Block | None = None) -> None:
        super().__init__()
        self.block = block  # metadata of its checkpoint
        self.__dict__["classifier"] = classifier  # a submodule would store its weights twice
        self.net: nn.Module = classifier.net
        # outputs that the head stores become logits outside of the network
        stores_outputs = classifier.head.stores_outputs
        self.head: OutputFunction | None = None if stores_outputs else classifier.logits

    def forward(self, image: Tensor) -> Tensor:
        """Logits (n, K), or pair logits (n, K(K-1)/2)."""
        outputs: Tensor = self.net(image)
        return outputs if self.head is None else self.head(outputs)


@dataclass(frozen=True)
class ExportFormat:
    """One file format of exported members."""

    suffix: str  # of the file
    write: Callable[[ExportNetwork, Metadata], bytes]  # returns the content of the file
    read: Callable[[Path, Metadata], OutputFunction]  # returns a function from images to outputs
    tolerance: float  # largest difference of a probability from PyTorch's that is allowed
    description: str  # one line for `--help`
    backend: str = "torch"  # computes the outputs; a value of `consilium serve --backend`


def output_name(module: ImageClassifier) -> str:
    """What the exported network returns: `pair_logits` of a one-vs-one head, else `logits`."""
    return "pair_logits" if module.head.stores_outputs else "logits"


def to_onnx(network: ExportNetwork, metadata: Metadata) -> bytes:
    """The content of an ONNX file with a free batch dimension, by torch's exporter."""
    import onnx

    import_module("onnxscript")  # torch's exporter needs it
    program: Any = torch.onnx.export(
        network, (example_input(metadata),), dynamo=True, verbose=False, input_names=["image"],
        output_names=[metadata["output"]], dynamic_shapes=FREE_BATCH_SIZE,
    )  # fmt: skip
    model = program.model_proto
    onnx.helper.set_model_props(model, {KEY: json.dumps(metadata)})
    return bytes(model.SerializeToString())


def from_onnx(file: Path, metadata: Metadata) -> OutputFunction:
    """A function that runs the file in onnxruntime on the CPU, with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.cpu().numpy()})[0])


def to_torch_export(network: ExportNetwork, metadata: Metadata) -> bytes:
    """The content of a torch.export archive, which loads without Consilium and without timm."""
    images, stream = (example_input(metadata),), io.BytesIO()
    program = torch.export.export(network, images, dynamic_shapes=FREE_BATCH_SIZE)
    torch.export.save(program, stream, extra_files={KEY: json.dumps(metadata)})
    return stream.getvalue()


def to_safetensors(network: ExportNetwork, metadata: Metadata) -> bytes:
    """The content of a safetensors file with the backbone's weights by timm's names."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in network.net.state_dict().items()}
    return save_safetensors(state, {KEY: json.dumps(metadata)})


def from_safetensors(file: Path, metadata: Metadata) -> OutputFunction:
    """An ExportNetwork built from the metadata, with the weights in the file."""
    values: dict[str, Any] = {field.name: None for field in fields(checkpoints.Block)}
    names = ("module", "init_args", "class_names", "preprocess")
    values |= {name: metadata[name] for name in names} | {"structure": metadata.get("structure")}
    module = require_image_classifier(checkpoints.build_module(checkpoints.Block(**values)))
    module.net.load_state_dict(load_file(file))
    return ExportNetwork(module.eval().requires_grad_(False))


def to_packed(network: ExportNetwork, metadata: Metadata) -> bytes:
    """The content of a checkpoint with float16 weights, and bitmaps where many are 0."""
    if network.block is None:
        raise ValueError("format packed: only members loaded from checkpoints can be packed")
    return checkpoints.packed_checkpoint(network.block, network.classifier.state_dict())


def from_packed(file: Path, metadata: Metadata) -> OutputFunction:
    """An ExportNetwork with the module in a packed checkpoint."""
    module = require_image_classifier(checkpoints.load(file)[0])
    return ExportNetwork(module.requires_grad_(False))


#: To add a format, enter it here; `consilium export`, `consilium serve` and tests read the entry.
FORMATS: dict[str, ExportFormat] = {
    "onnx": ExportFormat(
        ".onnx", to_onnx, from_onnx, 1e-4,
        "for onnxruntime and other runtimes, without torch", "onnxruntime"),
    "torch_export": ExportFormat(
        ".pt2", to_torch_export, lambda file, _: torch.export.load(file).module(), 1e-5,
        "archive of torch.export, without timm"),
    "safetensors": ExportFormat(
        ".safetensors", to_safetensors, from_safetensors, 1e-5, "weights only, with timm's names"),
    "packed": ExportFormat(
        packing.SUFFIX, to_packed, from_packed, 1e-2,
        "checkpoint with float16 weights and a bitmap of zeros"),
}  # fmt: skip


def export_module(
    name: str, module: ImageClassifier, metadata: Metadata, block: checkpoints.Block | None = None
) -> bytes:
    """The content of a module's file in format `name`; raises ValueError if the export fails."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # exporters print messages for their developers
    try:
        with frozen_for_inference(module.net), warnings.catch_warnings(action="ignore"):
            return FORMATS[name].write(ExportNetwork(module, block).eval(), metadata)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        what, reason = metadata["backbone"], " ".join(str(error).split())[:300]
        raise ValueError(f"{what} cannot be exported to {name}: {reason}") from error
    finally:
        logging.disable(level)


def example_input(metadata: Metadata) -> Tensor:
    """Zeros (2, 3, size, size): with one image, exporters would fix the batch size."""
    side = int(metadata["preprocess"]["size"])
    return torch.zeros(2, 3, side, side)
