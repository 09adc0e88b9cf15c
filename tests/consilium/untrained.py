"""Checkpoints and ensembles of untrained members, for tests without training."""

import torch

from datamodules.preprocess import Preprocess
from evaluation.voters import store
from lightning_modules import checkpoints
from lightning_modules.checkpoints import read
from lightning_modules.ensemble import load_voter, write_ensemble_file

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


def write_ensemble(folder, files, voter="soft", class_names=CLASSES, voter_folder=None):
    """Writes an ensemble.json of checkpoints, named by files or run folders; returns the folder.

    A fitted voter is saved into `voter_folder`, by default the ensemble's own.
    """
    blocks = {
        file.parent.name if file.name == "best.ckpt" else file.stem: (file, read(file)[0])
        for file in files
    }
    hashes = [block.weights for _, block in blocks.values()]
    fitted = load_voter(voter, hashes, class_names) if isinstance(voter, str) else voter
    if fitted is voter:
        store.save(voter_folder or folder, fitted)
    members = {
        name: {"path": str(file), "weights": block.weights, "digest": block.digest}
        for name, (file, block) in blocks.items()
    }
    identity = {"name": fitted.voter.name, "fitted_on": fitted.fitted_on}
    identity["digest"] = store.digest(fitted)
    write_ensemble_file(folder, list(class_names), members, identity)
    return folder
