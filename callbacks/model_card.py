"""README.md of a run folder, and its weights as safetensors with a description as JSON."""

import hashlib
import inspect
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import timm
from safetensors.torch import save as to_safetensors

from evaluation.files import write_bytes, write_json, write_text
from evaluation.metrics.registry import metric_label, summary_metrics
from evaluation.reports.html import format_estimate, format_sample_size
from evaluation.results import Results, read_results
from lightning_modules import backbones
from lightning_modules.classifier import ImageClassifier

FILES = {
    "best.ckpt": "weights of the best epoch, with everything needed to load them without pickle",
    "last.ckpt": "last epoch, with the state of the optimizer, to resume from",
    "model.safetensors": "the weights of the network alone",
    "model.json": "description of model.safetensors: backbone, classes, preprocessing, CAM layer",
    "config.yaml": "all settings of the training",
    "history.csv": "metrics of each epoch",
    "results.json": "metrics of the test split with confidence intervals",
    "report.html": "the same with plots",
    "predictions": "logits of each image of val and test",
}
UNKNOWN_LICENSE = "not recorded, see where the file comes from"
LOAD_EXAMPLE = """\
import sys

import torch

from datamodules.images import read_image
from datamodules.preprocess import Preprocess
from lightning_modules import checkpoints

module, block = checkpoints.load("best.ckpt")
image = Preprocess.from_dict(block.preprocess)(read_image(sys.argv[1]))
with torch.inference_mode():
    probabilities = module(image[None]).{activation}[0]
print(dict(zip(block.class_names, probabilities.tolist())))
"""  # with the `activation` of the head
SALIENCY_EXAMPLE = """\
saliency = module.explainer(size=image.shape[-1])(image[None])
print("class", block.class_names[saliency.classes[0]], "map", saliency.maps[0].shape)
"""
TIMM_EXAMPLE = """\
import json

import timm
import torch
from safetensors.torch import load_file

with open("model.json") as file:
    model = json.load(file)
net = timm.create_model(model["backbone"], num_classes=model["outputs"], **model["arguments"])
net.load_state_dict(load_file("model.safetensors"))
size = model["preprocess"]["size"]
print(net.eval()(torch.zeros(1, 3, size, size)).shape)
"""


class ModelCard(L.Callback):
    """Writes README.md, model.safetensors and model.json after the test of a single model."""

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes the files after a test that did not fail, when its results are written."""
        if stage != "test" or not isinstance(pl_module, ImageClassifier):
            return
        folder, data = Path(trainer.default_root_dir), pl_module.datamodule
        if data is None or not trainer.is_global_zero:
            return
        model = describe_model(pl_module, data.preprocess.to_dict())
        weights = {k: v.cpu().contiguous().clone() for k, v in pl_module.net.state_dict().items()}
        write_bytes(folder / "model.safetensors", to_safetensors(weights))
        write_json(folder / "model.json", model)
        file = folder / "results.json"
        results = read_results(file) if file.is_file() else None
        write_text(folder / "README.md", readme(folder, model, results, pl_module.preprocess_note))


def describe_model(module: ImageClassifier, preprocess: dict[str, Any]) -> dict[str, Any]:
    """The content of model.json: plain values that are enough to rebuild the network with timm."""
    name, options, size = module.backbone, module.backbone_args, preprocess["size"]
    fixed = {"img_size": size} if timm.models.get_pretrained_cfg(name).fixed_input_size else {}
    own_options, cam_layer = inspect.signature(backbones.build).parameters, None
    with suppress(ValueError):  # no feature maps, or several findings
        layer = module.explainer(size).layers[0]
        cam_layer = {"name": layer.name, "layout": layer.layout, "side": layer.height}
    return {
        "format": 1,
        "module": type(module).__name__,
        "backbone": name,
        "outputs": getattr(module.net, "num_classes", None),
        "arguments": fixed | {k: v for k, v in options.items() if k not in own_options},
        "timm": type(module.net).__module__.startswith("timm."),
        "class_names": list(module.class_names),
        "head": module.head_name.replace("_", "-"),
        "outputs_meaning": module.head.meaning,
        "activation": module.head.activation,
        "preprocess": preprocess,
        "cam_layer": cam_layer,
        "structure": module.structure,
        "pretrained": describe_pretrained(name, module.init_args.get("pretrained", False)),
    }


def describe_pretrained(backbone: str, pretrained: object) -> dict[str, str] | None:
    """Name and license of the weights that training started from; None if they were random."""
    if isinstance(pretrained, str):
        content = hashlib.sha256(Path(pretrained).read_bytes()).hexdigest()
        return {"weights": Path(pretrained).name, "sha256": content, "license": UNKNOWN_LICENSE}
    published = {"weights": f"{backbone} of timm", "license": backbones.license(backbone)}
    return published if pretrained else None


def readme(
    folder: Path, model: dict[str, Any], results: Results | None, preprocess_note: str = ""
) -> str:
    """The text of README.md: model, metrics, files, preprocessing, usage, saliency maps."""
    files = [f"- `{name}`: {text}" for name, text in FILES.items() if (folder / name).exists()]
    network = f"{model['backbone']} ({model['module']}, {model['head']} head)"
    names, preprocess = ", ".join(model["class_names"]), json.dumps(model["preprocess"])
    start = model["pretrained"]
    pruned = "Channels were pruned: `structure` lists those that remain."
    parts = [
        f"# {folder.name}",
        f"{network} for the classes {names}. For research only; not a medical device.",
        pruned if model["structure"] else "",
        "Training started from {weights}; license: {license}.".format(**start) if start else "",
        _metrics(results) if results else "",
        "## Files\n\n" + "\n".join(files),
        f"## Preprocessing\n\n{preprocess_note}",
        f"```json\n{preprocess}\n```",
        *_examples(folder, model),
        *_saliency(folder, model),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _metrics(results: Results) -> str:
    """Markdown section with a table of the summary metrics, or of the AUROC of each finding."""
    metrics = {k: results.metrics[k] for k in summary_metrics() if k in results.metrics}
    if results.findings:
        aurocs = ((f"auroc/{n}", part.metrics) for n, part in results.findings.items())
        metrics = results.metrics | {name: own[name] for name, own in aurocs if name in own}
    count = f"{format_sample_size(next(iter(metrics.values())))}, {results.split} split"
    rows = [f"| {metric_label(name)} | {format_estimate(x)} |" for name, x in metrics.items()]
    return "\n".join(["## Metrics\n", f"| {count} | value (95 % interval) |", "|---|---|", *rows])


def _examples(folder: Path, model: dict[str, Any]) -> list[str]:
    """Markdown paragraphs on how to load the files that exist in the folder."""
    parts = []
    if (folder / "best.ckpt").exists():
        example = LOAD_EXAMPLE.replace("{activation}", model["activation"])
        intro = "In this folder, with Consilium installed and the path of an image as argument:"
        parts += [intro, f"```python\n{example}```"]
    fits_timm = model["timm"] and model["outputs"] and not model["structure"]
    if fits_timm and (folder / "model.json").exists():
        meaning = model["outputs_meaning"]
        intro = f"With timm alone; images must be preprocessed as above, and {meaning}:"
        parts += [intro, f"```python\n{TIMM_EXAMPLE}```"]
    return ["## Usage", *parts] if parts else []


def _saliency(folder: Path, model: dict[str, Any]) -> list[str]:
    """Markdown paragraphs on saliency maps: the recommended layer, a command, an example."""
    layer, size, title = model["cam_layer"], model["preprocess"]["size"], "## Saliency maps"
    if layer is None:
        return [title, "There are none for this network or this head."]
    has_checkpoint = (folder / "best.ckpt").exists()
    checkpoint = "." if has_checkpoint else "CHECKPOINT"
    parts = [
        title,
        f"Recommended layer for class activation maps: `{layer['name']}` ({layer['layout']}, "
        f"{layer['side']} x {layer['side']} at {size} pixels), the deepest stage with a map of at "
        "least 7 x 7. Maps over the original images:",
        f"```bash\nconsilium explain {checkpoint} IMAGE... -o maps\n```",
    ]
    if has_checkpoint:
        parts += ["After the first example above:", f"```python\n{SALIENCY_EXAMPLE}```"]
    return parts
