"""README.md of a run folder, and the weights in formats that need nothing of ours."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
import timm
import torch
from safetensors.torch import save as safetensors
from torch import nn

from evaluation.files import write_bytes, write_json, write_text
from evaluation.reports.html import counted, number
from evaluation.reports.run import MAIN
from evaluation.results import Results, read_results

# arguments of a backbone that are not timm's own
OURS = ("grad_checkpointing", "channels_last", "compile", "commercial_only", "pretrained",
        "image_size")  # fmt: skip
FILES = {
    "best.ckpt": "weights and all that is needed to rebuild the model; read without pickle",
    "last.ckpt": "the last epoch, with the optimizer's state, to go on from",
    "model.safetensors": "the weights of the network alone, with model.json",
    "model.json": "what model.safetensors is of: backbone, classes, preprocessing, CAM layer",
    "state_dict.pt": "the same weights for torch.load(..., weights_only=True)",
    "config.yaml": "every setting of the training",
    "history.csv": "one row an epoch",
    "results.json": "figures of the test split with intervals",
    "report.html": "the same with pictures",
    "predictions": "what it said of every image of val and test",
}


class Model(Protocol):
    """A module, as far as its README looks at it."""

    init_args: dict[str, Any]
    class_names: list[str]
    net: nn.Module
    structure: dict[str, Any]
    explainer: Callable[[int], Any]


class ModelCard(L.Callback):
    """After a test of one model: README.md, model.safetensors, model.json and state_dict.pt.

    It belongs behind `Record`, whose figures it quotes.

    Args:
        weights: whether to write the weights as well.
    """

    def __init__(self, weights: bool = True) -> None:
        self.weights = weights

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the folder's own account of the model that was tested."""
        if not trainer.is_global_zero or not hasattr(pl_module, "explainer"):
            return
        folder, module = Path(trainer.default_root_dir), cast(Any, pl_module)
        about = describe(module, cast(Any, trainer).datamodule.preprocess.to_dict())
        if self.weights:
            state = {k: v.detach().cpu().contiguous().clone() for k, v in weights_of(module)}
            write_bytes(folder / "model.safetensors", safetensors(state))
            write_bytes(folder / "state_dict.pt", _torch(state))
            write_json(folder / "model.json", about)
        kept = folder / "results.json"
        results = read_results(kept) if kept.is_file() else None
        write_text(folder / "README.md", text(folder, about, results))


def weights_of(module: Model) -> list[tuple[str, torch.Tensor]]:
    """Names and tensors of the bare network."""
    return list(module.net.state_dict().items())


def describe(module: Model, preprocess: dict[str, Any]) -> dict[str, Any]:
    """What a network is, as plain values: enough to build it anew with timm."""
    arguments = module.init_args
    options = dict(arguments["backbone_args"] or {})
    size, name = preprocess["size"], arguments["backbone"]
    fixed = {"img_size": size} if timm.models.get_pretrained_cfg(name).fixed_input_size else {}
    return {
        "format": 1,
        "module": type(module).__name__,
        "backbone": name,
        "outputs": getattr(module.net, "num_classes", None),
        "arguments": fixed | {k: v for k, v in options.items() if k not in OURS},
        "timm": type(module.net).__module__.startswith("timm."),
        "class_names": list(module.class_names),
        "head": arguments.get("head", "one versus one"),
        "preprocess": preprocess,
        "cam_layer": _layer(module, size),
        "structure": module.structure,
    }


def _layer(module: Model, size: int) -> dict[str, Any] | None:
    """The recommended layer; None for a network without maps."""
    try:
        layer = module.explainer(size).layers[0]
    except ValueError:
        return None
    return {"name": layer.name, "layout": layer.layout, "side": layer.height}


def text(folder: Path, about: dict[str, Any], results: Results | None) -> str:
    """The README: what it is, figures, files, how to load it, where to look."""
    names = ", ".join(about["class_names"])
    parts = [
        f"# {folder.name}",
        f"{about['backbone']} ({about['module']}, {about['head']} head) that tells apart: {names}. "
        "For research only; it is not a medical device.",
        *(["Channels were pruned: `structure` says which are left."] if about["structure"] else []),
        *_figures(results),
        "## Files\n",
        "\n".join(f"- `{name}`: {what}" for name, what in FILES.items() if _there(folder, name)),
        "## What it sees",
        f"```json\n{json.dumps(about['preprocess'])}\n```",
        *_use(folder, about),
        *_where(folder, about),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


EXAMPLE = """\
import sys

import torch

from datamodules.images import read
from datamodules.preprocess import Preprocess
from lightning_modules import checkpoints

module, block = checkpoints.load("best.ckpt")
image = Preprocess.from_dict(block.preprocess)(read(sys.argv[1]))
with torch.inference_mode():
    probabilities = module(image[None]).softmax(dim=1)[0]
print(dict(zip(block.class_names, probabilities.tolist())))
found = module.explainer(size=image.shape[-1])(image[None])
print("class", block.class_names[found.classes[0]], "map", found.maps[0].shape)
"""
BARE = """\
import json

import timm
import torch
from safetensors.torch import load_file

with open("model.json") as file:
    about = json.load(file)
net = timm.create_model(about["backbone"], num_classes=about["outputs"], **about["arguments"])
net.load_state_dict(load_file("model.safetensors"))
side = about["preprocess"]["size"]
print(net.eval()(torch.zeros(1, 3, side, side)).shape)
"""


def _use(folder: Path, about: dict[str, Any]) -> list[str]:
    """How to load what lies in the folder; nothing of what does not."""
    said = []
    if _there(folder, "best.ckpt"):
        how = "From this folder, in the environment of Consilium, with a picture as argument:"
        said += [how, f"```python\n{EXAMPLE}```"]
    if _there(folder, "model.json") and about["timm"] and about["outputs"]:
        said += [] if about["structure"] else _bare(about)
    return ["## Use it", *said] if said else []


def _bare(about: dict[str, Any]) -> list[str]:
    said = "Without Consilium, with timm alone; pictures have to be prepared as said above"
    outputs = {"sigmoid": "the output is the logit of the second class"}
    said = f"{said}; {outputs.get(about['head'], 'outputs are logits')}:"
    return [said, f"```python\n{BARE}```"]


def _where(folder: Path, about: dict[str, Any]) -> list[str]:
    layer, side = about["cam_layer"], about["preprocess"]["size"]
    which = "." if _there(folder, "best.ckpt") else "CHECKPOINT"
    if layer is None:
        return ["## Where it looks", "This network has no layer with maps."]
    return [
        "## Where it looks",
        f"Recommended layer for class activation maps: `{layer['name']}` ({layer['layout']}, "
        f"{layer['side']} x {layer['side']} at {side} pixels), the deepest stage whose map is at "
        "least 7 x 7. Maps over the original picture:",
        f"```bash\nconsilium explain {which} IMAGE... -o maps\n```",
    ]


def _figures(results: Results | None) -> list[str]:
    if results is None:
        return []
    known = [name for name in MAIN if name in results.metrics]
    lines = [f"| {name} | {number(results.metrics[name])} |" for name in known]
    first = results.metrics[known[0]]
    many = f"{counted(first)}, {results.split} split"
    return ["## Figures", "\n".join([f"| {many} | value (95 % interval) |", "|---|---|", *lines])]


def _there(folder: Path, name: str) -> bool:
    return (folder / name).exists()


def _torch(state: dict[str, torch.Tensor]) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()
