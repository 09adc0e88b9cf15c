"""What is said of one picture: class, confidence, each member's vote, and where it was seen."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pydantic import BaseModel, Field
from torch import Tensor

from consilium.inference.predictor import Model
from consilium.inference.thumbnails import png, smaller
from datamodules import images
from evaluation.plots.maps import colored, rgb

SIDE = 640  # of the picture and the maps that are sent back, at most
LINE = 12  # pixels; a shorter line is a speck
LEVELS = 64  # of a map; more cannot be told apart and take more bytes


class Vote(BaseModel):
    """What one member says."""

    name: str = Field(description="the member's")
    label: str = Field(serialization_alias="class", description="its own answer")
    confidence: float = Field(description="its probability of that class, as it says it")
    probabilities: dict[str, float] = Field(description="of each class; they sum to 1")
    agrees: bool = Field(description="whether it names the ensemble's class")


class Maps(BaseModel):
    """PNGs as data URLs; a map is as large as the picture and transparent where nothing speaks."""

    about: str = Field(serialization_alias="class", description="the class that the maps are of")
    picture: str
    ensemble: str
    members: dict[str, str]


class Answer(BaseModel):
    """What is said of one picture."""

    name: str = Field(description="the file's, without folders")
    width: int = Field(description="of the picture in pixels")
    height: int = Field(description="of the picture in pixels")
    label: str = Field(serialization_alias="class", description="the ensemble's answer")
    confidence: float = Field(description="the probability of the class, calibrated if fitted so")
    probabilities: dict[str, float] = Field(description="of each class; they sum to 1")
    referred: bool | None = Field(description="below the referral threshold; null without one")
    agreement: float = Field(description="share of the members that name the class")
    members: list[Vote] = Field(description="what each member says")
    maps: Maps | None = Field(default=None, description="where it was seen, if asked for")


@dataclass(frozen=True)
class Asked:
    """A picture that was decoded and prepared.

    Args:
        name: by which the answer calls it.
        seen: what the members see of it, by view.
        shown: a copy of at most `SIDE` pixels.
        width: of the picture.
        height: of the picture.
        part: the attribute's value for a voter that needs one.
        maps: whether maps are asked for.
    """

    name: str
    seen: dict[str, Tensor]
    shown: np.ndarray
    width: int
    height: int
    part: str
    maps: bool


def prepared(
    model: Model, name: str, data: bytes, frame: int | None, part: str, maps: bool, most: int
) -> Asked:
    """Decodes and prepares as evaluation does; ValueError says why it cannot."""
    picture = images.pixels(np.frombuffer(data, np.uint8), frame, most)
    height, width = picture.shape[:2]
    return Asked(name, model.prepare(picture), smaller(picture, SIDE), width, height, part, maps)


def answered(model: Model, asked: Sequence[Asked], refer_below: float | None) -> list[Answer]:
    """The answers to pictures that are asked about together."""
    said = model.answer([one.seen for one in asked], [one.part for one in asked])
    return [_answer(model, one, said[:, at], refer_below) for at, one in enumerate(asked)]


def _answer(model: Model, asked: Asked, said: np.ndarray, refer_below: float | None) -> Answer:
    names, ensemble = model.class_names, said[-1]
    top = int(ensemble.argmax())
    votes = [
        Vote(
            name=member.name,
            label=names[int(vote.argmax())],
            confidence=float(vote.max()),
            probabilities=dict(zip(names, vote.tolist(), strict=True)),
            agrees=int(vote.argmax()) == top,
        )
        for member, vote in zip(model.members, said, strict=False)
    ]
    return Answer(
        name=asked.name,
        width=asked.width,
        height=asked.height,
        label=names[top],
        confidence=float(ensemble[top]),
        probabilities=dict(zip(names, ensemble.tolist(), strict=True)),
        referred=None if refer_below is None else bool(ensemble[top] < refer_below),
        agreement=sum(vote.agrees for vote in votes) / len(votes),
        members=votes,
    )


def mapped(model: Model, asked: Asked, answer: Answer) -> Answer:
    """The answer with maps of its class."""
    at = model.class_names.index(answer.label)
    looked = model.over(asked.shown, asked.seen, at, asked.part)
    members = zip(model.members, looked.maps, strict=True)
    maps = Maps(
        about=answer.label,
        picture=url(rgb(asked.shown)),
        ensemble=url(veil(looked.heat)),
        members={member.name: url(veil(heat)) for member, heat in members},
    )
    return answer.model_copy(update={"maps": maps})


def veil(heat: np.ndarray) -> np.ndarray:
    """A map as color and opacity, RGBA; a white line at half of its peak needs no color.

    Over a small picture it is drawn larger than the picture, so that the line is fine.
    """
    scale = max(1, round(SIDE / max(heat.shape) - 0.5))
    heat = cv2.resize(heat, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    levels = np.rint(np.clip(heat, 0.0, 1.0) * LEVELS) / LEVELS
    opacity = np.rint(levels[..., None] * 255).astype(np.uint8)
    found = np.ascontiguousarray(np.concatenate([colored(levels), opacity], axis=2))
    if heat.max() > 0:
        inside = (heat >= 0.5 * heat.max()).astype(np.uint8)
        lines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        long = [line for line in lines if len(line) >= LINE]
        cv2.drawContours(found, long, -1, (255, 255, 255, 255), 2)
    return found


def url(pixels: np.ndarray) -> str:
    """RGB or RGBA pixels as the data URL of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()
