"""The audit of a study's data, made once and kept beside its report."""

from pathlib import Path

from consilium.cli.audit import write
from consilium.experiments.config import ENSEMBLE, MEMBERS
from consilium.experiments.results import Runs
from consilium.inference import data_config
from datamodules.audit.audit import audit
from evaluation.files import read_json
from evaluation.reports import html

FOLDER = "audit"


def audits(runs: Runs, folder: Path) -> dict[str, Path]:
    """audit.json of each data set that members were trained on, by its digest; made if missing."""
    found: dict[str, Path] = {}
    for name in runs:
        config, digest = folder / MEMBERS / name / "config.yaml", _digest(runs, name)
        if not config.is_file() or digest in found:
            continue
        kept = folder / FOLDER / digest
        if not (kept / "audit.json").is_file():
            data = data_config.from_configs([str(config)])
            write(audit(data.listed()), kept, f"the data of {name}")
        found[digest] = kept / "audit.json"
    return found


def _digest(runs: Runs, name: str) -> str:
    return str(runs[name].meta.get("manifest_digest", ""))[:12] or name


def sections(kept: dict[str, Path], runs: Runs) -> list[html.Section]:
    """One row a data set: how much there is, and what is wrong with it."""
    rows: list[tuple[html.Cell, ...]] = []
    for digest, file in kept.items():
        said = read_json(file)
        names = [n for n in runs if _digest(runs, n) == digest and not n.startswith(ENSEMBLE)]
        suspects = [fact["name"] for fact in said["confounds"] if fact["suspect"]]
        words = [finding["message"] for finding in said["findings"]] + said["notes"]
        words += [f"predicts the class by itself: {', '.join(suspects)}"] if suspects else []
        used = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        rows.append(
            (used, said["files"], said["patients"], said["leaks"], "; ".join(words) or "none")
        )
    if not rows:
        return []
    columns = ("data of", "files", "patients", "kinds of leak", "findings")
    note = f"The pairs and all numbers stand in {FOLDER}/ beside this report."
    return [html.Table(columns, rows, "Audit", note)]
