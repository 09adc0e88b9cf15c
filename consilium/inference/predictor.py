"""A checkpoint or an ensemble applied to images: probabilities and saliency maps."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from datamodules.preprocess import Preprocess
from evaluation.results import read_results
from evaluation.voters.store import FittedEnsemble
from lightning_modules import ImageClassifier, checkpoints
from lightning_modules.cam import Explainer
from lightning_modules.ensemble import EnsembleModule, find_ensemble_file, load_ensemble

SINGLE = "32-true"
#: What other values of `Trainer.precision` compute in; those not listed are not supported here.
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
Inputs = dict[str, torch.Tensor]  # of the members for one image, by the name of their Preprocess


@dataclass(frozen=True)
class ImageExplanation:
    """Prediction and saliency maps of one image of H x W pixels, by M members for K classes."""

    saliency_map: np.ndarray  # (H, W) float32, 0 to 1; mean of the members' maps by their weights
    member_maps: np.ndarray  # (M, H, W) float32, 0 to 1
    member_probabilities: np.ndarray  # (M, K), calibrated if the ensemble's members are
    member_weights: np.ndarray  # (M,) weight of each member in the score of the class
    probabilities: np.ndarray  # (K,) of the ensemble
    class_index: int  # the class that the maps explain


@dataclass(frozen=True)
class Member:
    """One trained model of an ensemble."""

    name: str
    weights_hash: str
    preprocess: Preprocess
    class_order: list[int]  # index of each of the ensemble's classes among its own
    module: ImageClassifier | None = None  # None if only another runtime computes its logits
    explainer: Explainer | None = None  # None if its format has no gradients
    logits_function: Callable[[torch.Tensor], np.ndarray] | None = None  # images -> (n, K)
    block: checkpoints.Block | None = None  # of its checkpoint, if it was loaded from one

    def require_module(self) -> ImageClassifier:
        """The classifier; raises ValueError if this member has none."""
        if self.module is None:
            raise ValueError(f"{self.name}: this export has no PyTorch module; use its checkpoint")
        return self.module

    def require_explainer(self) -> Explainer:
        """The explainer that computes saliency maps; raises ValueError if this member has none."""
        if self.explainer is None:
            message = "this export has no saliency maps; explain its checkpoint"
            raise ValueError(f"{self.name}: {message}")
        return self.explainer

    def logits(self, images: torch.Tensor) -> np.ndarray:
        """Logits (n, K) of preprocessed images, in the member's own class order."""
        if self.logits_function is not None:
            return self.logits_function(images)
        with torch.inference_mode():
            return np.asarray(self.require_module()(images).float().cpu().numpy())

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities (n, K) in the ensemble's class order, from the member's logits."""
        return np.asarray(softmax(logits[:, self.class_order].astype(np.float64), axis=1))

    def predict(self, images: torch.Tensor) -> np.ndarray:
        """Probabilities (n, K) of preprocessed images, in the ensemble's class order."""
        return self.probabilities(self.logits(images))

    def explain(self, image: torch.Tensor, label: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Saliency map (size, size) of `label` (default: predicted class), probabilities (K,)."""
        classes = None if label is None else [self.class_order[label]]
        explained = self.require_explainer()(image[None], classes)
        return explained.maps[0], self.probabilities(explained.logits)[0]


@dataclass(frozen=True)
class Predictor:
    """Members and the voter that combines them; a single checkpoint is an ensemble of one."""

    members: list[Member]
    ensemble: FittedEnsemble
    device: torch.device
    precision: str = SINGLE  # of predictions; saliency maps are computed in 32 bits

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the probabilities."""
        return self.ensemble.class_names

    @property
    def can_explain(self) -> bool:
        """Whether all members have saliency maps."""
        return all(member.explainer is not None for member in self.members)

    def with_method(self, method: str) -> "Predictor":
        """The same members with saliency maps by another method."""
        members = [
            replace(m, explainer=Explainer(m.require_module(), m.preprocess.size, method))
            for m in self.members
        ]
        return replace(self, members=members)

    def preprocess(self, image: np.ndarray) -> Inputs:
        """The members' inputs (3, size, size) for one image, by the name of their Preprocess."""
        views = {member.preprocess.name: member.preprocess for member in self.members}
        return {name: view(image) for name, view in views.items()}

    def predict(self, image: np.ndarray, group: str = "") -> np.ndarray:
        """Probabilities (M + 1, K) for one image: of each member and, last, of the ensemble."""
        return self.predict_batch([self.preprocess(image)], [group])[:, 0]

    def predict_batch(self, inputs: Sequence[Inputs], groups: Sequence[str]) -> np.ndarray:
        """Probabilities (M + 1, n, K) of preprocessed images: members, then the ensemble."""
        views = {name: torch.stack([i[name] for i in inputs]).to(self.device) for name in inputs[0]}
        dtype = AUTOCAST.get(self.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            members = np.stack([m.predict(views[m.preprocess.name]) for m in self.members])
        ensemble = self.ensemble(members, np.array(groups, dtype=object))
        return np.concatenate([members, ensemble[None]])

    def member_weights(
        self, members: np.ndarray, classes: np.ndarray, groups: Sequence[str]
    ) -> np.ndarray:
        """Weight (n, M) of each member in the ensemble's score of `classes` (n,).

        `members` are the members' probabilities (M, n, K).
        """
        return self.ensemble.voter.member_weights(members, classes, np.array(groups, dtype=object))

    def explain(
        self,
        image: np.ndarray,
        label: int | None = None,
        group: str = "",
        inputs: Inputs | None = None,
    ) -> ImageExplanation:
        """Prediction and saliency maps of an image; maps of `label`, else the predicted class."""
        inputs = inputs or self.preprocess(image)
        if label is None and len(self.members) > 1:
            label = int(self.predict_batch([inputs], [group])[-1, 0].argmax())
        explained = [
            m.explain(inputs[m.preprocess.name].to(self.device), label) for m in self.members
        ]
        members = np.stack([probabilities for _, probabilities in explained])
        if self.precision in AUTOCAST:
            members = self.predict_batch([inputs], [group])[:-1, 0]
        ensemble = self.ensemble(members[:, None], np.array([group], dtype=object))[0]
        label = int(ensemble.argmax()) if label is None else label
        weights = self.member_weights(members[:, None], np.array([label]), [group])[0]
        pairs = zip(self.members, explained, strict=True)
        maps = np.stack([m.preprocess.project_to_image(small, image) for m, (small, _) in pairs])
        mean_map = np.einsum("m,mhw->hw", weights, maps).astype(np.float32)
        calibrated = self.ensemble.calibrate_members(members[:, None])[:, 0]
        return ImageExplanation(mean_map, maps, calibrated, weights, ensemble, label)

    def refuse_trained_samples(self, paths: Sequence[str], split: str) -> None:
        """Raises ValueError if an image was used to train a member or to choose its epoch."""
        for member in self.members:
            if member.block is not None:
                source = f"split {split!r}: member {member.name!r}"
                checkpoints.refuse_trained_samples(member.block, paths, split, source)

    def groups_of(self, rows: pd.DataFrame, default: str = "") -> list[str]:
        """The value of the voter's attribute for each row, `default` if there is no such column."""
        if self.ensemble.voter.attribute not in rows:
            return [default] * len(rows)
        return [str(value) for value in rows[self.ensemble.voter.attribute]]


def run_folder_of(path: Path) -> Path:
    """The run folder of a model: the path itself, or the folder of the file."""
    return path if path.is_dir() else path.parent


def load_predictor(
    path: Path, method: str = "GradCAM", device: torch.device | None = None
) -> Predictor:
    """Loads a checkpoint, run folder or ensemble.json; saliency maps are computed by `method`.

    An ensemble predicts in the precision in which it was evaluated.
    """
    precision = ""
    if file := find_ensemble_file(path):
        ensemble = load_ensemble(path)
        precision = ensemble.ensemble.precision or _recorded_precision(file.parent)
    else:
        file = path / "best.ckpt" if path.is_dir() else path
        ensemble = EnsembleModule(checkpoints.read(file)[0].class_names, [str(file)])
    device = device or torch.device("cpu")
    ensemble.to(device)
    members = []
    for name, block, order, module in zip(
        ensemble.member_names, ensemble.blocks, ensemble.class_orders, ensemble.members, strict=True
    ):
        view, classifier = Preprocess.from_dict(block.preprocess), require_image_classifier(module)
        explainer = Explainer(classifier, view.size, method)
        members.append(Member(name, block.weights, view, order, classifier, explainer, None, block))
    own_precision = precision if precision in AUTOCAST else SINGLE
    warn_of_other_precision(path, precision, own_precision)
    return Predictor(members, ensemble.ensemble, device, own_precision)


def _recorded_precision(folder: Path) -> str:
    """The precision in the results of a run folder, "" if unknown."""
    results = folder / "results.json"
    return str(read_results(results).meta.get("precision") or "") if results.is_file() else ""


def warn_of_other_precision(path: Path, evaluated: str, own: str) -> None:
    """Warns if the precision `evaluated` is known and is not that of predictions, `own`."""
    if evaluated not in ("", own):
        message = f"{path} was evaluated in precision {evaluated}, predictions are in {own}"
        warnings.warn(message, stacklevel=3)


def require_image_classifier(module: torch.nn.Module) -> ImageClassifier:
    """The module; raises ValueError if it is not an ImageClassifier."""
    if not isinstance(module, ImageClassifier):
        raise ValueError(f"{type(module).__name__} is not an ImageClassifier")
    return module
