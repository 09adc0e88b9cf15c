"""Checkpoints and ensembles of untrained members, written in a moment."""

import json

import torch

from datamodules.preprocess import Preprocess
from lightning_modules import checkpoints

CLASSES = ["none", "simple", "comminuted"]


def saved(module, preprocess: Preprocess, path):
    """A checkpoint that describes itself, with weights as they were drawn but for a surer head."""
    with torch.no_grad():
        module.net.get_classifier().weight.normal_(std=0.5)
    content = {"state_dict": module.state_dict()}
    checkpoints.write_block(
        content,
        module=type(module).__name__,
        init_args=module.init_args,
        class_names=list(module.class_names),
        preprocess=preprocess.to_dict(),
        manifest_digest="d",
        train_ids=checkpoints.id_hashes([]),
        metrics={},
        measured_weights="",
        epoch=1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def ensemble_of(folder, files, kind="soft", class_names=CLASSES, fitted_on=""):
    """An ensemble.json of checkpoints, named by their files or run folders; its folder."""
    members = {
        file.parent.name if file.name == "best.ckpt" else file.stem: {
            "path": str(file),
            "weights": checkpoints.read(file)[0].weights,
        }
        for file in files
    }
    voter = {"kind": kind, "fitted_on": fitted_on}
    said = {"format": 1, "class_names": class_names, "voter": voter}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ensemble.json").write_text(json.dumps({**said, "members": members}))
    return folder
