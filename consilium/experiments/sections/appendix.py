"""Appendix of an experiment's report: evaluated saliency maps, cost, audit of the data."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from consilium.experiments.config import MEMBERS
from consilium.experiments.run import Run
from consilium.experiments.sections import Runs
from consilium.inference import audit_report, data_config, saliency_evaluation
from consilium.inference.saliency_evaluation import SaliencyResult
from datamodules.audit.audit import audit_manifest
from datamodules.audit.confounds import statistic_label
from evaluation import saliency
from evaluation.files import read_json
from evaluation.reports import html
from evaluation.reports.run import read_savings
from lightning_modules import checkpoints, model_info

AUDIT = "audit"  # folder
COST_COLUMNS = (
    "member", "backbone", "parameters", "MACs per image", "pixels", "epochs", "seconds", "zeros",
)  # fmt: skip
COST_NOTE = (
    "Parameters and multiply-accumulates (MACs) of the network in best.ckpt; a dash without that "
    "file. Seconds: training and validation of all epochs. Zeros: fraction of all weights; a dash "
    "for a dense member. The cost of an ensemble is the sum of its members'."
)
AUDIT_NOTE = "All numbers and pairs of images are on the page named last, next to this report."
SaliencyResults = dict[Path, list[SaliencyResult]]  # by the folder of one run's evaluation


def read_saliency(finished: dict[str, Run]) -> SaliencyResults:
    """Evaluated saliency maps by folder; names of an ensemble's members begin with its name."""
    folders = [run.folder for run in finished.values() if run.result == saliency.FILE]
    return {
        folder: [
            result._replace(member=_full_name(result.member, folder.name))
            for result in saliency_evaluation.read_results(folder)
        ]
        for folder in folders
    }


def _full_name(member: str, run: str) -> str:
    """`<run>: <member>`, `<run> (<voter>)` for the ensemble itself, `<run>` for a single model."""
    if member.startswith("ensemble ("):  # with its voter
        return member.replace("ensemble", run, 1)
    return member if member == run else f"{run}: {member}"


def saliency_sections(evaluated: SaliencyResults) -> list[html.Section]:
    """One table of all runs, and example maps of each run."""
    results = list(chain.from_iterable(evaluated.values()))
    sections: list[html.Section] = [saliency_evaluation.results_table(results)] if results else []
    for folder in evaluated:
        sections += saliency_evaluation.example_sections(folder, f"Saliency maps of {folder.name}")
    return sections


def saliency_table(evaluated: SaliencyResults) -> pd.DataFrame:
    """One row per run, method and metric."""
    rows = [
        {"member": member, "method": method, "metric": name, **asdict(estimate)}
        for member, method, estimates in chain.from_iterable(evaluated.values())
        for name, estimate in estimates.items()
    ]
    return pd.DataFrame(rows)


def read_costs(histories: Mapping[str, pd.DataFrame], folder: Path) -> pd.DataFrame:
    """Backbone, size, compute and training time: one row per member that is done."""
    cache: dict[str, tuple[int, int]] = {}
    rows = [_cost_row(folder / MEMBERS / n, history, cache) for n, history in histories.items()]
    return pd.DataFrame(rows, columns=list(COST_COLUMNS), dtype=object)


def _cost_row(
    run: Path, history: pd.DataFrame, cache: dict[str, tuple[int, int]]
) -> tuple[object, ...]:
    """Values of `COST_COLUMNS` of a run; `cache` as in `_checkpoint_cost`."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    backbone = config["model"]["init_args"].get("backbone", "")  # own classes may not have one
    pixels = config["data"]["init_args"]["preprocess"]["size"]
    zeros = read_savings(run).get("weights_zero_fraction")
    costs = _checkpoint_cost(run / "best.ckpt", cache)
    return run.name, backbone, *costs, pixels, len(history), float(history["seconds"].sum()), zeros


def _checkpoint_cost(
    file: Path, cache: dict[str, tuple[int, int]]
) -> tuple[int, int] | tuple[None, None]:
    """Parameters and MACs of a checkpoint's network; `cache` has those of equal networks."""
    if not file.is_file():
        return None, None
    block, _ = checkpoints.read(file, mmap=True)
    network = repr((block.module, block.init_args, block.structure, block.preprocess["size"]))
    if network not in cache:
        cache[network] = model_info.checkpoint_cost(block)
    return cache[network]


def cost_sections(costs: pd.DataFrame) -> list[html.Section]:
    """The table of `read_costs`; nothing if it is empty."""
    if costs.empty:
        return []
    rows = costs.to_numpy().tolist()
    return [html.Table(COST_COLUMNS, rows, "Cost", COST_NOTE, digits=2)]


def audit_data(runs: Runs, folder: Path) -> dict[str, dict[str, Any]]:
    """Content of each dataset's audit, run if missing, by its members: `a and 2 more`."""
    members: dict[str, list[str]] = {}
    for name, run in runs.items():
        if (folder / MEMBERS / name / "config.yaml").is_file():
            digest = str(run.meta.get("manifest_digest", ""))[:12] or name
            members.setdefault(digest, []).append(name)
    audits = {}
    for digest, (first, *others) in members.items():
        output = folder / AUDIT / digest
        if not (output / audit_report.JSON).is_file():
            data = data_config.load_datamodule([str(folder / MEMBERS / first / "config.yaml")])
            audit = audit_manifest(data.load_manifest(), output)
            audit_report.write_audit_report(audit, output, f"the data of {first}")
        label = f"{first} and {len(others)} more" if others else first
        page = f"{AUDIT}/{digest}/{audit_report.PAGE}"
        audits[label] = {**read_json(output / audit_report.JSON), "page": page}
    return audits


def audit_sections(audits: Mapping[str, Mapping[str, Any]]) -> list[html.Section]:
    """One row per dataset: its size and its issues."""
    rows: list[tuple[html.Cell, ...]] = []
    for members, content in audits.items():
        suspects = [statistic_label(c["name"]) for c in content["confounds"] if c["is_suspect"]]
        issues = [issue["message"] for issue in content["issues"]] + content["notes"]
        issues += [f"predicts the class by itself: {', '.join(suspects)}"] if suspects else []
        counts = (content["files"], content["patients"], content["leaks"])
        rows.append((members, *counts, "; ".join(issues) or "none", content["page"]))
    columns = ("data of", "files", "patients", "kinds of leak", "issues", "page")
    return [html.Table(columns, rows, "Audit", AUDIT_NOTE)] if rows else []
