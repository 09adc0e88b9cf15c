"""A fitted voter with its calibration, saved with the hashes of the members it was fitted for."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from evaluation.files import (
    DIGEST,
    json_digest,
    naming,
    read_json,
    require_digest,
    require_types,
    with_digest,
    write_bytes,
    write_json,
)
from evaluation.metrics.calibration import Calibration
from evaluation.voters.registry import voter_spec
from evaluation.voters.simple import Voter

SCHEMA, VERSION = "consilium.voter", 6
FILE = "voter.json"


@dataclass(frozen=True)
class FittedEnsemble:
    """Combines the members' probabilities by a voter and calibrates them."""

    voter: Voter
    members: list[str]  # hashes of the members' weights, in the order of the first axis
    class_names: list[str]
    calibration: Calibration = field(default_factory=Calibration)
    fitted_on: str = ""  # manifest digest of the validation tables, if known
    member_calibrations: list[Calibration] = field(default_factory=list)  # empty if unknown
    precision: str = ""  # that the members were evaluated in, if known

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (members, n, K) -> (n, K), pooled and then calibrated."""
        if members.shape[::2] != (len(self.members), len(self.class_names)):
            required = (len(self.members), "n", len(self.class_names))
            raise ValueError(f"members have shape {members.shape}, this ensemble needs {required}")
        return self.calibration(self.voter(members, groups))

    def calibrate_members(self, members: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (members, n, K); unchanged without `member_calibrations`."""
        if not self.member_calibrations:
            return members
        pairs = zip(self.member_calibrations, members, strict=True)
        return np.stack([calibration(probabilities) for calibration, probabilities in pairs])


def save(folder: Path | str, ensemble: FittedEnsemble) -> None:
    """Writes `voter.json` and `voter.safetensors`; the first contains the hash of the second."""
    content, data = _content(ensemble)
    write_bytes(Path(folder) / "voter.safetensors", data)
    write_json(Path(folder) / FILE, content)


def digest(ensemble: FittedEnsemble) -> str:
    """SHA-256 of all that decides how members are combined."""
    return str(_content(ensemble)[0][DIGEST])


def _content(ensemble: FittedEnsemble) -> tuple[dict[str, Any], bytes]:
    """The content of voter.json with its digest, and the bytes of voter.safetensors."""
    settings = vars(ensemble.voter)
    arrays = {k: np.ascontiguousarray(v) for k, v in settings.items() if isinstance(v, np.ndarray)}
    plain, data = {k: v for k, v in settings.items() if k not in arrays}, save_arrays(arrays)
    content = {
        "schema": SCHEMA,
        "version": VERSION,
        "members": ensemble.members,
        "class_names": ensemble.class_names,
        "fitted_on": ensemble.fitted_on,
        "calibration": asdict(ensemble.calibration),
        "precision": ensemble.precision,
        "member_calibrations": list(map(asdict, ensemble.member_calibrations)),
        "voter": {"name": ensemble.voter.name, **plain},
        "arrays": hashlib.sha256(data).hexdigest(),
    }
    return with_digest(content), data


def load(folder: Path | str, members: Sequence[str], class_names: Sequence[str]) -> FittedEnsemble:
    """Reads an ensemble; ValueError unless it was fitted for these members and classes."""
    path = Path(folder) / FILE
    content = read_json(path)
    version = (content.get("schema"), content.get("version"))
    if version != (SCHEMA, VERSION):
        raise ValueError(f"{path}: schema and version {version}, not {(SCHEMA, VERSION)}")
    with naming(path):
        require_digest(content, json_digest(content))
    data = path.with_suffix(".safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != content.get("arrays"):
        raise ValueError(f"{path.with_suffix('.safetensors')} does not belong to {path.name}")
    with naming(path):
        ensemble = _build_ensemble(content, load_arrays(data))
    fitted, required = ensemble.members, list(members)
    if fitted != required:
        unknown = [m for m in required if m not in fitted]
        reason = f"member {unknown[0]!r} is not one of them" if unknown else f"not {required}"
        raise ValueError(f"{path}: fitted for the members {fitted}; {reason}")
    if ensemble.class_names != list(class_names):
        classes = f"classes {ensemble.class_names}, not {list(class_names)}"
        raise ValueError(f"{path}: fitted for {classes}")
    return ensemble


def _build_ensemble(content: dict[str, Any], arrays: dict[str, np.ndarray]) -> FittedEnsemble:
    """The ensemble of voter.json and arrays; ValueError, TypeError or KeyError if damaged."""
    require_types(content, {"members": list[str], "class_names": list[str], "fitted_on": str,
                            "precision": str, "voter": dict[str, Any]})  # fmt: skip
    settings = dict(content["voter"])
    return FittedEnsemble(
        voter_spec(settings.pop("name")).voter_class(**settings, **arrays),
        content["members"],
        content["class_names"],
        Calibration(**content["calibration"]),
        content["fitted_on"],
        [Calibration(**values) for values in content["member_calibrations"]],
        content["precision"],
    )
