"""The JSON of the API, and how a prediction is computed from an uploaded image."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pydantic import BaseModel, Field
from torch import Tensor

from consilium.inference.predictor import Predictor
from consilium.serving.upload import UploadForm
from datamodules.images import decode_bytes, downscale, encode_png
from evaluation.metrics.conformal import ConformalSets
from evaluation.plots.maps import colored_map, to_rgb
from evaluation.reports.html import NOTICE

MAX_SIDE = 640  # pixels of the image and of the maps in a response
MIN_CONTOUR = 12  # pixels; shorter contours are noise
MAP_LEVELS = 64  # of a map; more are indistinguishable and make larger files


class MemberInfo(BaseModel):
    """One model of the ensemble."""

    name: str
    weights: str = Field(description="hash of its weights")
    preprocess: dict[str, object]


class PointingScore(BaseModel):
    """How often the maximum of a saliency map was in the lesion's box, with its 95 % interval."""

    value: float
    low: float | None
    high: float | None
    n: int = Field(description="images")


class ModelInfo(BaseModel):
    """The served ensemble, and the limits of a request."""

    title: str
    class_names: list[str]
    voter: str = Field(description="name of the rule that combines the models")
    voter_label: str = Field(description="the same for people")
    calibrated: bool
    members_calibrated: bool = Field(description="whether members' probabilities are calibrated")
    calibration: str = Field(description="how probabilities are calibrated, in words")
    temperature: float | None = Field(description="null: each class has its own scale and bias")
    temperature_at_bound: bool = Field(description="whether val had too few errors to fit it")
    refer_below: float | None
    sets: float | None = Field(description="rate at which sets contain the class; null: no sets")
    group_attribute: str | None = Field(description="attribute that field `group` must give")
    groups: list[str] = Field(description="its values with weights of their own")
    saliency_maps: bool = Field(description="whether saliency maps can be requested")
    pointing: dict[str, PointingScore] = Field(
        description="measured for the maps of `ensemble` and of each model; empty if it was not"
    )
    members: list[MemberInfo]
    formats: list[str]
    max_bytes: int
    max_files: int
    max_pixels: int
    examples: list[str]
    notice: str = NOTICE


class MemberPrediction(BaseModel):
    """Prediction of one model of the ensemble."""

    name: str = Field(description="name of the model")
    label: str = Field(serialization_alias="class", description="its predicted class")
    probability: float = Field(description="its probability of that class")
    probabilities: dict[str, float] = Field(
        description="probability of each class, calibrated if `members_calibrated`; they sum to 1"
    )
    raw_probabilities: dict[str, float] = Field(description="the same before calibration")
    agrees: bool = Field(description="whether it predicts the same class as the ensemble")
    weight: float = Field(description="its weight in the ensemble's score of the predicted class")


class SaliencyMaps(BaseModel):
    """PNG files as data URLs. Maps have the size of the image, transparent where they are 0."""

    label: str = Field(serialization_alias="class", description="the class that the maps explain")
    image: str = Field(description="the image")
    ensemble: str = Field(description="mean of the members' maps by their weights")
    members: dict[str, str] = Field(description="map of each model")


class ImagePrediction(BaseModel):
    """Prediction for one image."""

    name: str = Field(description="file name without folders")
    width: int = Field(description="of the image in pixels")
    height: int = Field(description="of the image in pixels")
    label: str = Field(serialization_alias="class", description="the predicted class")
    probability: float = Field(description="its probability, calibrated if the ensemble is")
    probabilities: dict[str, float] = Field(description="probability of each class; they sum to 1")
    referred: bool | None = Field(
        description="whether the probability is below the referral threshold; null without one"
    )
    prediction_set: list[str] | None = Field(
        description="classes that contain the right one at the stated rate; null without sets"
    )
    agreement: float = Field(description="fraction of the models that predict this class")
    members: list[MemberPrediction] = Field(description="prediction of each model")
    saliency_maps: SaliencyMaps | None = Field(default=None, description="if requested")


class PredictResponse(BaseModel):
    """One prediction per image, in the order of the images."""

    predictions: list[ImagePrediction]
    notice: str = NOTICE


@dataclass(frozen=True)
class PreparedImage:
    """A decoded and preprocessed image."""

    name: str  # of the file
    inputs: dict[str, Tensor]  # the members', by the name of their Preprocess
    preview: np.ndarray  # a copy of at most `MAX_SIDE` pixels
    width: int
    height: int
    group: str  # value of the attribute that the voter needs
    saliency_maps: bool  # whether maps are requested


def prepare_image(
    predictor: Predictor, form: UploadForm, name: str, data: bytes, max_pixels: int
) -> PreparedImage:
    """Decodes and preprocesses an image file as in evaluation; ValueError if it cannot be read."""
    image = decode_bytes(np.frombuffer(data, np.uint8), form.frame, max_pixels)
    height, width = image.shape[:2]
    inputs, preview = predictor.preprocess(image), downscale(image, MAX_SIDE)
    return PreparedImage(name, inputs, preview, width, height, form.group, form.saliency_maps)


def predict_images(
    predictor: Predictor,
    images: Sequence[PreparedImage],
    refer_below: float | None,
    sets: ConformalSets | None = None,
) -> list[ImagePrediction]:
    """Predictions for a batch of images, without saliency maps."""
    groups, names = [image.group for image in images], predictor.class_names
    probabilities = predictor.predict_batch([image.inputs for image in images], groups)
    classes = probabilities[-1].argmax(axis=1)
    weights = predictor.member_weights(probabilities[:-1], classes, groups)
    calibrated = predictor.ensemble.calibrate_members(probabilities[:-1])
    is_in_set = None if sets is None else sets(probabilities[-1])
    predictions = []
    for row, image in enumerate(images):
        columns = (calibrated[:, row], probabilities[:-1, row], weights[row])
        members = [
            MemberPrediction(
                name=member.name,
                label=names[int(p.argmax())],
                probability=float(p.max()),
                probabilities=dict(zip(names, p.tolist(), strict=True)),
                raw_probabilities=dict(zip(names, raw.tolist(), strict=True)),
                agrees=bool(p.argmax() == classes[row]),
                weight=float(weight),
            )
            for member, p, raw, weight in zip(predictor.members, *columns, strict=True)
        ]
        ensemble = probabilities[-1, row]
        predictions.append(
            ImagePrediction(
                name=image.name,
                width=image.width,
                height=image.height,
                label=names[classes[row]],
                probability=float(ensemble.max()),
                probabilities=dict(zip(names, ensemble.tolist(), strict=True)),
                referred=None if refer_below is None else bool(ensemble.max() < refer_below),
                prediction_set=None
                if is_in_set is None
                else [name for name, is_in in zip(names, is_in_set[row], strict=True) if is_in],
                agreement=sum(member.agrees for member in members) / len(members),
                members=members,
            )
        )
    return predictions


def add_saliency_maps(
    predictor: Predictor, image: PreparedImage, prediction: ImagePrediction
) -> ImagePrediction:
    """A copy of the prediction with saliency maps of its class added."""
    label = predictor.class_names.index(prediction.label)
    explanation = predictor.explain(image.preview, label, image.group, image.inputs)
    members = zip(predictor.members, explanation.member_maps, strict=True)
    maps = SaliencyMaps(
        label=prediction.label,
        image=data_url(to_rgb(image.preview)),
        ensemble=data_url(map_overlay(explanation.saliency_map)),
        members={m.name: data_url(map_overlay(saliency_map)) for m, saliency_map in members},
    )
    return prediction.model_copy(update={"saliency_maps": maps})


def map_overlay(saliency_map: np.ndarray) -> np.ndarray:
    """Enlarges a map (H, W) to RGBA: its value is the opacity, half its maximum a white contour."""
    scale = max(1, round(MAX_SIDE / max(saliency_map.shape) - 0.5))  # makes the contour thin
    enlarged = cv2.resize(saliency_map, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    levels = np.rint(np.clip(enlarged, 0.0, 1.0) * MAP_LEVELS) / MAP_LEVELS
    rgba = np.dstack([colored_map(levels), np.rint(levels * 255).astype(np.uint8)])
    if enlarged.max() > 0:
        is_high = (enlarged >= 0.5 * enlarged.max()).astype(np.uint8)
        contours, _ = cv2.findContours(is_high, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        contours = [contour for contour in contours if len(contour) >= MIN_CONTOUR]
        cv2.drawContours(rgba, contours, -1, (255, 255, 255, 255), 2)
    return rgba


def data_url(pixels: np.ndarray) -> str:
    """RGB or RGBA pixels as the data URL of a PNG file."""
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode()
