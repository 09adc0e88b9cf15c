"""A fitted voter with its temperature: saved with the members it was fitted for, and verified."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from evaluation.files import read_json, write_bytes, write_json
from evaluation.metrics.calibration import Temperature
from evaluation.voters.attention import PartAttention, Stacked
from evaluation.voters.learned import Greedy, Learned, PerClass, PerPart
from evaluation.voters.simple import Geometric, Majority, Soft, Voter, Weighted

SCHEMA, VERSION = "consilium.voter", 1
VOTERS: dict[str, Callable[..., Voter]] = {
    "soft": Soft,
    "geometric": Geometric,
    "majority": Majority,
    "weighted": Weighted,
    "learned": Learned,
    "greedy": Greedy,
    "per_class": PerClass,
    "per_part": PerPart,
    "stacked": Stacked,
    "part_attention": PartAttention,
}
Built = TypeVar("Built")


@dataclass(frozen=True)
class FittedEnsemble:
    """How the members' probabilities become one answer: a voter, then a temperature.

    `members` are the hashes of the members' checkpoints, in the order of the first axis;
    `fitted_on` is the manifest digest of the validation tables, '' if nothing was fitted.
    """

    voter: Voter
    members: list[str]
    class_names: list[str]
    temperature: Temperature = field(default_factory=Temperature)
    fitted_on: str = ""

    @property
    def attribute(self) -> str:
        """The attribute whose values it must be given, or ''."""
        return self.voter.attribute

    @property
    def kind(self) -> str:
        """The voter's kind."""
        return self.voter.kind

    def __call__(self, members: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (members, n, K) -> (n, K), pooled and then calibrated."""
        if members.shape[::2] != (len(self.members), len(self.class_names)):
            wanted = (len(self.members), "n", len(self.class_names))
            raise ValueError(f"members have shape {members.shape}, this ensemble needs {wanted}")
        return self.temperature(self.voter(members, parts))


def save(folder: Path | str, ensemble: FittedEnsemble) -> None:
    """Writes `voter.json` and `voter.safetensors`; the first holds the hash of the second."""
    arrays: dict[str, np.ndarray] = {}
    plain = {
        "schema": SCHEMA,
        "version": VERSION,
        "members": ensemble.members,
        "class_names": ensemble.class_names,
        "fitted_on": ensemble.fitted_on,
        "temperature": _plain(ensemble.temperature, "temperature", arrays),
        "voter": {"kind": ensemble.kind, **_plain(ensemble.voter, "voter", arrays)},
    }
    data = save_arrays(arrays)
    write_bytes(Path(folder) / "voter.safetensors", data)
    write_json(Path(folder) / "voter.json", {**plain, "arrays": _sha(data)})


def load(folder: Path | str, members: Sequence[str], class_names: Sequence[str]) -> FittedEnsemble:
    """Reads an ensemble back; refused unless it was fitted for these members and classes."""
    path = Path(folder) / "voter.json"
    plain = read_json(path)
    found = (plain.get("schema"), plain.get("version"))
    if found != (SCHEMA, VERSION):
        raise ValueError(f"{path}: schema and version {found}, not {(SCHEMA, VERSION)}")
    data = path.with_suffix(".safetensors").read_bytes()
    if _sha(data) != plain.get("arrays"):
        raise ValueError(f"{path.with_suffix('.safetensors')} does not belong to {path.name}")
    try:
        ensemble = _ensemble(plain, load_arrays(data))
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from None
    _verify(path, ensemble, list(members), list(class_names))
    return ensemble


def _verify(
    path: Path, ensemble: FittedEnsemble, members: list[str], class_names: list[str]
) -> None:
    if ensemble.members != members:
        strange = [m for m in members if m not in ensemble.members]
        what = f"member {strange[0]!r} is not one of them" if strange else f"not {members}"
        raise ValueError(f"{path}: fitted for the members {ensemble.members}; {what}")
    if ensemble.class_names != class_names:
        raise ValueError(f"{path}: fitted for classes {ensemble.class_names}, not {class_names}")


def _ensemble(plain: dict[str, Any], arrays: dict[str, np.ndarray]) -> FittedEnsemble:
    settings = dict(plain["voter"])
    kind = settings.pop("kind")
    if kind not in VOTERS:
        raise ValueError(f"voter kind {kind!r} is not among {sorted(VOTERS)}")
    return FittedEnsemble(
        voter=_build(VOTERS[kind], settings, "voter", arrays),
        members=plain["members"],
        class_names=plain["class_names"],
        temperature=_build(Temperature, plain["temperature"], "temperature", arrays),
        fitted_on=plain["fitted_on"],
    )


def _plain(thing: object, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The fields that are plain; arrays go to `arrays` under dotted names."""
    found: dict[str, Any] = {}
    for field_name, value in vars(thing).items():
        name = f"{prefix}.{field_name}"
        if isinstance(value, np.ndarray):
            arrays[name] = np.ascontiguousarray(value)
        else:
            found[field_name] = _plain(value, name, arrays) if is_dataclass(value) else value
    return found


def _build(
    make: Callable[..., Built], plain: dict[str, Any], prefix: str, arrays: dict[str, np.ndarray]
) -> Built:
    """The inverse of `_plain`; a nested voter is a PerPart."""
    given = {
        name: _build(PerPart, value, f"{prefix}.{name}", arrays) if name == "rest" else value
        for name, value in plain.items()
    }
    own = {f"{prefix}.{name}": name for name in signature(make).parameters}
    return make(**given, **{own[name]: array for name, array in arrays.items() if name in own})


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
