"""Checkpoints and ensembles of untrained members, for tests without training."""

import json

import torch

from datamodules.preprocess import Preprocess
from lightning_modules import checkpoints

CLASSES = ["none", "simple", "comminuted"]


def save_checkpoint(module, preprocess: Preprocess, path):
    """Writes a self-describing checkpoint with random weights and a head of confident outputs."""
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
        train_ids=torch.empty(0, dtype=torch.int64),
        metrics={},
        measured_weights="",
        epoch=1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def write_ensemble(folder, files, voter="soft", class_names=CLASSES, fitted_on=""):
    """Writes an ensemble.json of checkpoints, named by files or run folders; returns the folder."""
    members = {
        file.parent.name if file.name == "best.ckpt" else file.stem: {
            "path": str(file),
            "weights": checkpoints.read(file)[0].weights,
        }
        for file in files
    }
    content = {
        "format": 1,
        "class_names": class_names,
        "voter": {"name": voter, "fitted_on": fitted_on},
        "members": members,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ensemble.json").write_text(json.dumps(content))
    return folder
