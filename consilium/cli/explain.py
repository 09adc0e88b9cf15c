"""consilium explain: where a model, or each member of an ensemble, sees what it says."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from consilium.cli import words
from consilium.cli.arguments import device, positive
from consilium.inference import data_config, panels, saliency_evaluation, samples
from consilium.inference.predictor import Looked, Model, folder_of, load
from datamodules.images import ImageError, read
from evaluation.files import file_names, write_json
from evaluation.reports.html import number
from lightning_modules.cam import CLASSLESS, METHODS

VERSION = 1
MOST = 5  # files that an error names
Picture = tuple[str, str, str]  # what it is called, its file, its part


def run(argv: list[str]) -> int:
    """Explains every picture that is named, or those of a split."""
    asked = parser().parse_args(argv)
    refuse(asked)
    if asked.measure is not None:
        return measured(asked)
    model = load(asked.model, asked.method, asked.device)
    wanted = _class(asked.wanted, model.class_names)
    todo = list(pictures(asked, model))
    names = file_names([name for name, _, _ in todo])
    rows, lost = list[dict[str, object]](), list[str]()
    for (_, path, part), name in track(
        list(zip(todo, names, strict=True)), "explaining", disable=len(todo) < 2
    ):
        try:
            picture = read(path)
        except ImageError as error:
            lost.append(str(error))
            continue
        looked = model.look(picture, wanted, part)
        rows.append(_row(path, name, picture, looked, model))
        panels.write(asked.output, name, picture, looked, model)
    if rows:
        write_json(asked.output / "explain.json", {**_about(asked, model), "images": rows})
        print(f"{len(rows)} images explained: {asked.output}")
    return close(lost, len(todo))


def close(lost: list[str], many: int) -> int:
    """An error at the end of all that can be read, where some cannot."""
    if lost:
        said = "; ".join(lost[:MOST]) + "; ..." * (len(lost) > MOST)
        raise ValueError(f"{len(lost)} of {many} images cannot be read: {said}")
    return 0


def refuse(asked: argparse.Namespace) -> None:
    """Refuses what cannot be asked together."""
    if bool(asked.images) == bool(asked.split):
        raise ValueError("name either IMAGE..., or --split and, if need be, --config")
    given = {"--config": asked.config, "--limit": asked.limit}
    lost = [name for name, value in given.items() if value]
    if lost and not asked.split:
        raise ValueError(f"{' '.join(lost)}: of a --split; the IMAGEs are named one by one")


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = words.parser("explain", __doc__)
    add = main.add_argument
    add("model", type=Path, metavar="CKPT|ENSEMBLE", help="checkpoint, run folder or ensemble.json")
    add("images", nargs="*", metavar="IMAGE", help="picture files, DICOM among them")
    add("-o", "--output", type=Path, default=Path("runs/explain"), help="folder (runs/explain)")
    add("--class", dest="wanted", metavar="NAME", help="explain this class, not the answer")
    add("--method", default="GradCAM", help=f"{', '.join(METHODS)} (GradCAM)")
    add("--split", choices=["train", "val", "test", "predict"], help="explain a whole split")
    help_ = "its data (config.yaml beside the model)"
    add("--config", action="append", default=[], metavar="FILE", help=help_)
    help_ = "measure these methods on the split instead: pointing, energy, deletion, insertion"
    add("--measure", nargs="*", metavar="METHOD", help=help_)
    add("--limit", type=positive, metavar="N", help="only N of the split, evenly spread over it")
    add("--part", default="", help="the attribute's value, for a voter that needs one")
    add("--device", type=device, default="cpu", help="cpu, cuda, cuda:N or auto (cpu)")
    return main


def pictures(asked: argparse.Namespace, model: Model) -> Iterator[Picture]:
    """Name, file and part of every picture to explain."""
    if not asked.split:
        yield from ((Path(path).name, path, asked.part) for path in asked.images)
        return
    table = rows_of(asked, model.class_names)
    yield from zip(table["id"], table["path"], model.parts_of(table, asked.part), strict=True)


def rows_of(asked: argparse.Namespace, class_names: list[str]) -> pd.DataFrame:
    """The manifest's rows of the split, labels in the order of `class_names`."""
    data = data_config.from_configs(asked.config or [str(beside(asked.model))])
    if data.class_names != class_names:
        raise ValueError(f"the data has classes {data.class_names}, the model {class_names}")
    data.prepare_data()
    table: pd.DataFrame = data.listed().table
    table = table[table["split"] == asked.split]
    if table.empty:
        raise ValueError(f"--split {asked.split}: no pictures")
    return samples.spread(table, asked.limit or len(table))


def measured(asked: argparse.Namespace) -> int:
    """Measures maps instead of drawing them."""
    if asked.split not in ("val", "test"):
        raise ValueError(f"--measure needs --split val or test, not {asked.split}")
    for name, value in {"--class": asked.wanted, "--part": asked.part}.items():
        if value:
            raise ValueError(f"{name} {value}: --measure goes by the label and part of each row")
    methods = asked.measure or [asked.method]
    model = load(asked.model, methods[0], asked.device)
    table = rows_of(asked, model.class_names)
    model.require_unseen(table["id"], asked.split)
    right = saliency_evaluation.correct(model, table)
    saliency_evaluation.examples(model, right, asked.output)
    rows = saliency_evaluation.measure(asked.model, methods, right, asked.device)
    saliency_evaluation.write(asked.output, rows)
    for member, method, found in rows:
        cells = [f"{name} {number(figure, 3)}" for name, figure in found.items()]
        print(f"{member}, {method}: {'; '.join(cells)}")
    print(f"Report: {asked.output / 'report.html'}")
    return 0


def beside(model: Path) -> Path:
    """The resolved config of the run folder that a model lies in."""
    folder = folder_of(model)
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"--config: {folder} holds no config.yaml, so name the data's config")
    return folder / "config.yaml"


def _class(wanted: str | None, names: list[str]) -> int | None:
    if wanted is not None and wanted not in names:
        raise ValueError(f"--class {wanted!r} is not one of {', '.join(names)}")
    return None if wanted is None else names.index(wanted)


def _about(asked: argparse.Namespace, model: Model) -> dict[str, Any]:
    members = {
        one.name: {"weights": one.weights, "layers": [layer.name for layer in one.maps.layers]}
        for one in model.members
    }
    return {
        "version": VERSION,
        "model": str(asked.model),
        "method": asked.method,
        "depends_on_class": asked.method not in CLASSLESS,
        "class_names": model.class_names,
        "voter": model.kind,
        "members": members,
    }


def _row(
    path: str, name: str, picture: np.ndarray, looked: Looked, model: Model
) -> dict[str, object]:
    names = model.class_names
    members = {
        one.name: {
            "class": names[int(vote.argmax())],
            "probabilities": vote.tolist(),
            "weight": float(weight),
            "peak": _peak(found),
        }
        for one, vote, weight, found in zip(
            model.members, looked.votes, looked.weights, looked.maps, strict=True
        )
    }
    return {
        "path": path,
        "name": name,
        "height": picture.shape[0],
        "width": picture.shape[1],
        "class": names[int(looked.probabilities.argmax())],
        "confidence": float(looked.probabilities.max()),
        "probabilities": looked.probabilities.tolist(),
        "explained": names[looked.asked],
        "peak": _peak(looked.heat),
        "members": members,
    }


def _peak(found: np.ndarray) -> list[int] | None:
    """Where the map is highest, x and y in the picture's pixels; None for an empty map."""
    if not found.any():
        return None
    y, x = np.unravel_index(int(found.argmax()), found.shape)
    return [int(x), int(y)]
