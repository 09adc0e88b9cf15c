"""Export of an ensemble: a folder of exported members, written, verified and loaded."""

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from callbacks.model_card import describe_model
from consilium.inference.export_formats import FORMATS, ExportNetwork, export_module, output_name
from consilium.inference.predictor import (
    SINGLE,
    Member,
    Predictor,
    load_predictor,
    warn_of_other_precision,
)
from datamodules.phantoms.generate import PhantomSpec, generate_images
from datamodules.preprocess import Preprocess
from evaluation.files import (
    json_digest,
    naming,
    read_json,
    require_digest,
    require_types,
    unique_file_names,
    with_digest,
    write_bytes,
    write_json,
)
from evaluation.voters import store
from lightning_modules.cam import Explainer
from lightning_modules.checkpoints import REGISTRY, package_versions
from lightning_modules.heads import coupled_logits

FILE, VERSION = "export.json", 3
OWN_FILES = ".files.json"  # SHA-256 of each file that an export wrote to a folder, by name
BACKENDS = tuple(dict.fromkeys(spec.backend for spec in reversed(FORMATS.values())))


@dataclass(frozen=True)
class ExportDifference:
    """An exported file, and its largest absolute differences from the checkpoint."""

    file: str
    bytes: int
    logit: float
    probability: float


def export_ensemble(
    predictor: Predictor, format_name: str, folder: Path, images: Sequence[np.ndarray]
) -> dict[str, ExportDifference]:
    """Exports all members to a folder; returns each one's differences from PyTorch by name.

    Raises ValueError and changes nothing if the differences are too large.
    """
    folder = folder.resolve()  # "." has neither a name nor a parent
    if (others := foreign_files(folder)) and not own_files(folder):
        raise ValueError(f"--output {folder}: contains files of other kinds; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new = Path(temporary) / folder.name
        files = write_export(new, format_name, predictor)
        differences = compare_with_checkpoints(predictor, load_export(new), images, files)
        require_agreement(format_name, differences)
        if taken := sorted({file.name for file in new.iterdir()} & set(others)):
            reason = "is no unchanged file of an export and would be overwritten; move it"
            raise ValueError(f"--output {folder}: {taken[0]} {reason}")
        replace_files(new, folder)
    return differences


def replace_files(new: Path, folder: Path) -> None:
    """Moves the files in `new` to a folder, in place of those of an earlier export there.

    An interruption leaves no export.json, but a list of the files that the next export replaces.
    """
    files = sorted(new.iterdir(), key=lambda file: file.name == FILE)
    for name in sorted(own_files(folder), key=lambda name: name != FILE):
        (folder / name).unlink()
    write_json(folder / OWN_FILES, {file.name: file_sha256(file) for file in files})
    for file in files:
        shutil.move(file, folder / file.name)


def own_files(folder: Path) -> set[str]:
    """Names of the files that an export wrote to a folder and nobody has changed since."""
    if not (folder / OWN_FILES).is_file():
        return set()
    hashes = read_json(folder / OWN_FILES)
    files = {name: folder / name for name in hashes if Path(name).name == name}
    return {n for n, f in files.items() if f.is_file() and file_sha256(f) == hashes[n]}


def file_sha256(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def foreign_files(folder: Path) -> list[str]:
    """Sorted names of what is in a folder and is not one of its `own_files`."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return sorted(names - own_files(folder) - {OWN_FILES})


def write_export(folder: Path, format_name: str, predictor: Predictor) -> list[Path]:
    """Writes one file per member, voter.json and export.json; returns the members' files."""
    members: dict[str, dict[str, Any]] = {}
    stems = unique_file_names([member.name for member in predictor.members])
    pairs = list(zip(predictor.members, stems, strict=True))
    for member, stem in track(pairs, "exporting", transient=True):
        module = member.require_module()
        metadata = {
            **describe_model(module, member.preprocess.to_dict()),
            "init_args": {**module.init_args, "pretrained": False},
            "weights": member.weights_hash,
            "output": output_name(module),
            "versions": package_versions(),
        }
        data = export_module(format_name, module, metadata, member.block)
        file, sha256 = f"{stem}{FORMATS[format_name].suffix}", hashlib.sha256(data).hexdigest()
        write_bytes(folder / file, data)
        members[member.name] = {"file": file, "sha256": sha256, "metadata": metadata}
    store.save(folder, predictor.ensemble)
    content = {"version": VERSION, "format": format_name, "class_names": predictor.class_names,
               "members": members, "voter": store.digest(predictor.ensemble)}  # fmt: skip
    write_json(folder / FILE, with_digest(content))
    return [folder / entry["file"] for entry in members.values()]


def load_export(folder: Path) -> Predictor:
    """Loads an exported ensemble and verifies its hashes; some formats have no saliency maps."""
    content = read_json(folder / FILE)
    version, format_name = content.get("version"), content.get("format")
    if version != VERSION or format_name not in tuple(FORMATS):
        raise ValueError(f"{folder / FILE}: version {version} and format {format_name!r}; needs "
                         f"version {VERSION} and one of {', '.join(FORMATS)}")  # fmt: skip
    with naming(folder / FILE):
        require_types(content, {"class_names": list[str], "voter": str,
                                "members": dict[str, dict[str, Any]]})  # fmt: skip
        require_digest(content, json_digest(content))
        members = [_load_member(folder, name, content) for name in content["members"]]
    class_names = content["class_names"]
    ensemble = store.load(folder, [member.weights_hash for member in members], class_names)
    if store.digest(ensemble) != content["voter"]:
        raise ValueError(f"{folder / store.FILE}: is not the voter that {FILE} describes")
    warn_of_other_precision(folder, ensemble.precision, SINGLE)
    return Predictor(members, ensemble, torch.device("cpu"))


def load_with_backend(path: Path, backend: str | None, device: torch.device) -> Predictor:
    """Loads a checkpoint, run folder, ensemble.json or export, to be computed by a backend."""
    is_export = (path / FILE).is_file()
    if backend not in (None, *BACKENDS):
        raise ValueError(f"--backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if device.type != "cpu" and (backend == "onnxruntime" or is_export):
        raise ValueError(f"--device {device}: exports and onnxruntime run on the cpu only")
    if is_export:
        name = read_json(path / FILE).get("format")
        if name in tuple(FORMATS) and backend not in (None, FORMATS[name].backend):
            raise ValueError(f"--backend {backend}: {path} is exported to {name}, which runs with "
                             f"{FORMATS[name].backend}")  # fmt: skip
        return load_export(path)
    predictor = load_predictor(path, device=device)
    if backend != "onnxruntime":
        return predictor
    with tempfile.TemporaryDirectory() as folder:  # PyTorch then computes only saliency maps
        files, images = write_export(Path(folder), "onnx", predictor), generated_images(4)
        exported = load_export(Path(folder))
        require_agreement("onnx", compare_with_checkpoints(predictor, exported, images, files))
    pairs = zip(predictor.members, exported.members, strict=True)
    members = [replace(a, logits_function=b.logits_function) for a, b in pairs]
    return replace(predictor, members=members)


def compare_with_checkpoints(
    predictor: Predictor, exported: Predictor, images: Sequence[np.ndarray], files: Sequence[Path]
) -> dict[str, ExportDifference]:
    """Largest differences of each member by name, in batches of the first image and of all."""
    differences = {}
    for ours, theirs, file in zip(predictor.members, exported.members, files, strict=True):
        inputs = torch.stack([ours.preprocess(image) for image in images])
        logits = [(ours.logits(batch), theirs.logits(batch)) for batch in (inputs[:1], inputs)]
        probabilities = [(ours.probabilities(a), theirs.probabilities(b)) for a, b in logits]
        largest = [max(float(np.abs(a - b).max()) for a, b in p) for p in (logits, probabilities)]
        differences[ours.name] = ExportDifference(file.name, file.stat().st_size, *largest)
    return differences


def require_agreement(format_name: str, differences: dict[str, ExportDifference]) -> None:
    """Raises ValueError if a member's probabilities differ by more than the format's tolerance."""
    tolerance = FORMATS[format_name].tolerance
    for name, difference in differences.items():
        if not difference.probability <= tolerance:  # also if it is NaN
            raise ValueError(
                f"{name}: exported to {format_name}, a probability differs from PyTorch's by "
                f"{difference.probability:.1e}, more than {tolerance:.0e}; nothing was written"
            )


def generated_images(count: int) -> list[np.ndarray]:
    """Synthetic gray radiographs; every fourth image is a synthetic fundus photograph in color."""
    gray = generate_images(PhantomSpec("fracture", count, 1, 256, seed=7))
    color = generate_images(PhantomSpec("retina", count, 1, 256, seed=7))
    return [next(color if index % 4 == 3 else gray)[1] for index in range(count)]


def _load_member(folder: Path, name: str, content: dict[str, Any]) -> Member:
    """The member `name` of export.json (`content`); ValueError if its file is not the one there."""
    entry = content["members"][name]
    require_types(entry, {"metadata": dict[str, Any], "file": str, "sha256": str})
    metadata, file = entry["metadata"], folder / Path(entry["file"]).name
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != entry["sha256"]:
        raise ValueError(f"{file}: missing, or not the file that {FILE} describes")
    if metadata["module"] not in REGISTRY:
        known = ", ".join(REGISTRY)
        raise ValueError(f"{folder / FILE}: module {metadata['module']!r} is not one of {known}")
    outputs = FORMATS[content["format"]].read(file, metadata)
    view = Preprocess.from_dict(metadata["preprocess"])
    order = [metadata["class_names"].index(class_name) for class_name in content["class_names"]]
    member = Member(name, metadata["weights"], view, order)
    if isinstance(outputs, ExportNetwork):
        module = outputs.classifier
        return replace(member, module=module, explainer=Explainer(module, view.size))

    def logits(images: torch.Tensor) -> np.ndarray:
        """Logits (n, K) of preprocessed images (n, 3, H, W)."""
        with torch.inference_mode():
            result = outputs(images)
            if metadata["output"] == "pair_logits":
                result = coupled_logits(result, len(metadata["class_names"]))
            return np.asarray(result.float().numpy())

    return replace(member, logits_function=logits)
