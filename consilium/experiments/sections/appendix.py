"""Appendix of an experiment's report: evaluated saliency maps, cost, audit of the data."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from consilium.experiments.config import ENSEMBLE, MEMBERS
from consilium.experiments.gates import Runs
from consilium.experiments.run import Run
from consilium.inference import data_config, saliency_evaluation
from consilium.inference.audit_report import write_audit_report
from consilium.inference.saliency_evaluation import SaliencyResult
from datamodules.audit.audit import audit_manifest
from evaluation import saliency, sparsity
from evaluation.files import read_json
from evaluation.reports import html
from lightning_modules import checkpoints, model_info

AUDIT = "audit"  # folder
COST_COLUMNS = (
    "member", "backbone", "parameters", "MACs per image", "pixels", "epochs", "seconds", "zeros",
)  # fmt: skip
COST_NOTE = (
    "Parameters and multiply-accumulates (MACs) are counted for the network in best.ckpt; a dash "
    "if there is no such file. Seconds: training and validation of all epochs on the machine that "
    "trained. Zeros: fraction of all weights; a dash for a dense member. The cost of an ensemble "
    "is the sum of its members'."
)
AUDIT_NOTE = f"All numbers and pairs of images are in {AUDIT}/ next to this report."


@dataclass(frozen=True)
class SaliencyEvaluation:
    """Evaluated saliency maps of one run; members of an ensemble have its name in theirs."""

    folder: Path
    results: list[SaliencyResult]


def read_saliency(finished: dict[str, Run]) -> list[SaliencyEvaluation]:
    """Evaluated saliency maps of every run that has them."""
    folders = [run.folder for run in finished.values() if run.result == saliency.FILE]
    return [SaliencyEvaluation(folder, _named_results(folder)) for folder in folders]


def _named_results(folder: Path) -> list[SaliencyResult]:
    return [
        result
        if result.member == folder.name
        else result._replace(member=f"{folder.name}: {result.member}")
        for result in saliency_evaluation.read_results(folder)
    ]


def saliency_sections(evaluations: list[SaliencyEvaluation]) -> list[html.Section]:
    """One table of all runs, and example maps of each run."""
    if not evaluations:
        return []
    results = [result for evaluation in evaluations for result in evaluation.results]
    examples = [
        section
        for e in evaluations
        for section in saliency_evaluation.example_sections(
            e.folder, f"Saliency maps of {e.folder.name}"
        )
    ]
    return [saliency_evaluation.results_table(results), *examples]


def saliency_table(evaluations: list[SaliencyEvaluation]) -> pd.DataFrame:
    """One row per run, method and metric."""
    rows = [
        {"member": member, "method": method, "metric": name, **asdict(estimate)}
        for evaluation in evaluations
        for member, method, estimates in evaluation.results
        for name, estimate in estimates.items()
    ]
    return pd.DataFrame(rows)


def read_costs(runs: Runs, folder: Path) -> pd.DataFrame:
    """Backbone, size, compute and training time: one row per member that is done."""
    counted: dict[str, tuple[int, int]] = {}
    members = [folder / MEMBERS / name for name in runs]
    rows = [_cost_row(run, counted) for run in members if (run / "history.csv").is_file()]
    return pd.DataFrame(rows, columns=list(COST_COLUMNS), dtype=object)


def _cost_row(run: Path, counted: dict[str, tuple[int, int]]) -> tuple[object, ...]:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    backbone = config["model"]["init_args"]["backbone"]
    pixels = config["data"]["init_args"]["preprocess"]["size"]
    history, sparse = pd.read_csv(run / "history.csv"), run / sparsity.SPARSITY_FILE
    zeros = read_json(sparse)["weights_zero_fraction"] if sparse.is_file() else None
    costs = _checkpoint_cost(run / "best.ckpt", counted)
    return run.name, backbone, *costs, pixels, len(history), float(history["seconds"].sum()), zeros


def _checkpoint_cost(
    file: Path, counted: dict[str, tuple[int, int]]
) -> tuple[int, int] | tuple[None, None]:
    """Parameters and MACs of a checkpoint's network; equal networks are counted once."""
    if not file.is_file():
        return None, None
    block, _ = checkpoints.read(file, mmap=True)
    network = repr((block.module, block.init_args, block.structure, block.preprocess["size"]))
    if network not in counted:
        counted[network] = model_info.checkpoint_cost(block)
    return counted[network]


def cost_sections(costs: pd.DataFrame) -> list[html.Section]:
    """The table of costs."""
    if costs.empty:
        return []
    rows = [tuple(None if pd.isna(cell) else cell for cell in row) for row in costs.to_numpy()]
    return [html.Table(COST_COLUMNS, rows, "Cost", COST_NOTE, digits=2)]


def audit_data(runs: Runs, folder: Path) -> dict[str, dict[str, Any]]:
    """The audit of each dataset that members were trained on, by digest; made if missing."""
    audits: dict[str, dict[str, Any]] = {}
    for name in runs:
        config, digest = folder / MEMBERS / name / "config.yaml", _data_digest(runs, name)
        if not config.is_file() or digest in audits:
            continue
        output = folder / AUDIT / digest
        if not (output / "audit.json").is_file():
            data = data_config.load_datamodule([str(config)])
            write_audit_report(audit_manifest(data.load_manifest()), output, f"the data of {name}")
        audits[digest] = read_json(output / "audit.json")
    return audits


def _data_digest(runs: Runs, name: str) -> str:
    return str(runs[name].meta.get("manifest_digest", ""))[:12] or name


def audit_sections(audits: dict[str, dict[str, Any]], runs: Runs) -> list[html.Section]:
    """One row per dataset: its size and its issues."""
    rows: list[tuple[html.Cell, ...]] = []
    for digest, content in audits.items():
        members = [
            n for n in runs if _data_digest(runs, n) == digest and not n.startswith(ENSEMBLE)
        ]
        suspects = [confound["name"] for confound in content["confounds"] if confound["is_suspect"]]
        issues = [issue["message"] for issue in content["issues"]] + content["notes"]
        issues += [f"predicts the class by itself: {', '.join(suspects)}"] if suspects else []
        used_by = members[0] + (f" and {len(members) - 1} more" if len(members) > 1 else "")
        counts = (content["files"], content["patients"], content["leaks"])
        rows.append((used_by, *counts, "; ".join(issues) or "none"))
    columns = ("data of", "files", "patients", "kinds of leak", "issues")
    return [html.Table(columns, rows, "Audit", AUDIT_NOTE)] if rows else []
