"""A fitted voter with its temperature, saved with the hashes of the members it was fitted for."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from evaluation.files import read_json, write_bytes, write_json
from evaluation.metrics.calibration import Temperature
from evaluation.voters.registry import voter_spec
from evaluation.voters.simple import Voter

SCHEMA, VERSION = "consilium.voter", 2
FILE = "voter.json"
Instance = TypeVar("Instance")


@dataclass(frozen=True)
class FittedEnsemble:
    """Combines the members' probabilities by a voter and calibrates them by a temperature.

    `members` are the hashes of the members' checkpoints, in the order of the first axis;
    `fitted_on` is the manifest digest of the validation tables, '' if nothing was fitted.
    """

    voter: Voter
    members: list[str]
    class_names: list[str]
    temperature: Temperature = field(default_factory=Temperature)
    fitted_on: str = ""

    @property
    def name(self) -> str:
        """Name of the voter in `VOTERS`."""
        return self.voter.name

    @property
    def attribute(self) -> str:
        """Attribute whose values the voter needs, or ''."""
        return self.voter.attribute

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (members, n, K) -> (n, K), pooled and then calibrated."""
        if members.shape[::2] != (len(self.members), len(self.class_names)):
            required = (len(self.members), "n", len(self.class_names))
            raise ValueError(f"members have shape {members.shape}, this ensemble needs {required}")
        return self.temperature(self.voter(members, groups))

    def member_weights(
        self, members: np.ndarray, classes: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """The voter's weight (n, members) of each member in the score of one class per image."""
        return self.voter.member_weights(members, classes, groups)

    def weight_rows(self, class_names: Sequence[str]) -> dict[str, np.ndarray]:
        """The voter's member weights by class or group; empty if it has none."""
        return self.voter.weight_rows(class_names)


def save(folder: Path | str, ensemble: FittedEnsemble) -> None:
    """Writes `voter.json` and `voter.safetensors`; the first contains the hash of the second."""
    arrays: dict[str, np.ndarray] = {}
    content = {
        "schema": SCHEMA,
        "version": VERSION,
        "members": ensemble.members,
        "class_names": ensemble.class_names,
        "fitted_on": ensemble.fitted_on,
        "temperature": _to_plain(ensemble.temperature, "temperature", arrays),
        "voter": {"name": ensemble.name, **_to_plain(ensemble.voter, "voter", arrays)},
    }
    data = save_arrays(arrays)
    write_bytes(Path(folder) / "voter.safetensors", data)
    write_json(Path(folder) / FILE, {**content, "arrays": _sha256(data)})


def load(folder: Path | str, members: Sequence[str], class_names: Sequence[str]) -> FittedEnsemble:
    """Reads an ensemble; ValueError unless it was fitted for these members and classes."""
    path = Path(folder) / FILE
    content = read_json(path)
    version = (content.get("schema"), content.get("version"))
    if version != (SCHEMA, VERSION):
        raise ValueError(f"{path}: schema and version {version}, not {(SCHEMA, VERSION)}")
    data = path.with_suffix(".safetensors").read_bytes()
    if _sha256(data) != content.get("arrays"):
        raise ValueError(f"{path.with_suffix('.safetensors')} does not belong to {path.name}")
    try:
        ensemble = _from_plain(content, load_arrays(data))
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from None
    _verify(path, ensemble, list(members), list(class_names))
    return ensemble


def _verify(
    path: Path, ensemble: FittedEnsemble, members: list[str], class_names: list[str]
) -> None:
    if ensemble.members != members:
        unknown = [m for m in members if m not in ensemble.members]
        reason = f"member {unknown[0]!r} is not one of them" if unknown else f"not {members}"
        raise ValueError(f"{path}: fitted for the members {ensemble.members}; {reason}")
    if ensemble.class_names != class_names:
        raise ValueError(f"{path}: fitted for classes {ensemble.class_names}, not {class_names}")


def _from_plain(content: dict[str, Any], arrays: dict[str, np.ndarray]) -> FittedEnsemble:
    settings = dict(content["voter"])
    spec = voter_spec(settings.pop("name"))
    return FittedEnsemble(
        voter=_build(spec.voter_class, settings, "voter", arrays),
        members=content["members"],
        class_names=content["class_names"],
        temperature=_build(Temperature, content["temperature"], "temperature", arrays),
        fitted_on=content["fitted_on"],
    )


def _to_plain(instance: object, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Fields of a dataclass as plain values; its arrays go to `arrays` under dotted names."""
    plain: dict[str, Any] = {}
    for field_name, value in vars(instance).items():
        name = f"{prefix}.{field_name}"
        if isinstance(value, np.ndarray):
            arrays[name] = np.ascontiguousarray(value)
        else:
            plain[field_name] = _to_plain(value, name, arrays) if is_dataclass(value) else value
    return plain


def _build(
    make: Callable[..., Instance], plain: dict[str, Any], prefix: str, arrays: dict[str, np.ndarray]
) -> Instance:
    """The inverse of `_to_plain`, also of nested dataclasses."""
    types = get_type_hints(make)
    values = {
        name: _build(types[name], value, f"{prefix}.{name}", arrays)
        if is_dataclass(types.get(name))
        else value
        for name, value in plain.items()
    }
    fields = {f"{prefix}.{name}": name for name in signature(make).parameters}
    return make(**values, **{fields[name]: value for name, value in arrays.items()
                             if name in fields})  # fmt: skip


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
