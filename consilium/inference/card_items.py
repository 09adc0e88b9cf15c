"""Items of a model card: those of CLAIM 2024 and TRIPOD+AI, in our words, and what fills each.

Numbers are those of Tejani et al. 2024 (doi:10.1148/ryai.240300) and of Collins et al. 2024
(doi:10.1136/bmj-2023-078378). An item without a function can only be answered by a person.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from consilium.config_files import read_config
from datamodules.audit.audit import AUDITS
from evaluation.external import largest_shifts
from evaluation.files import read_json
from evaluation.metrics.clinical import clinical_use
from evaluation.metrics.compute import metrics_by_attribute
from evaluation.metrics.registry import METRICS, metric_label, summary_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports.html import format_count, format_estimate, plain_name, plain_value
from evaluation.results import Results, read_results
from evaluation.stats.estimate import Estimate, Estimates
from lightning_modules import checkpoints
from lightning_modules.ensemble import read_ensemble_file

MAX_VALUES, MIN_IMAGES = 10, 20  # of an attribute with subgroups; images in each of these
PATHS = ("root", "files")  # of sources: a card names no folder of a machine
FINAL_EPOCH = "callbacks.BestAndLastCheckpoint"


class MissingArtefact(Exception):
    """A file that an item is filled from does not exist."""


@dataclass
class Artefacts:
    """The files of a run; each that is read is added to `used`, a missing one raises."""

    folder: Path
    used: dict[Path, None]

    def path(self, path: Path | str) -> Path:
        """A file, by its path in the run folder or as a whole."""
        file = self.folder / path
        if not file.is_file():
            raise MissingArtefact(str(file))
        self.used[file] = None
        return file

    @property
    def config(self) -> dict[str, Any]:
        """All settings."""
        return read_config(self.path("config.yaml"))

    @property
    def data(self) -> dict[str, Any]:
        """Settings of the data."""
        return dict(self.config["data"]["init_args"])

    @property
    def results(self) -> Results:
        """Metrics of the test."""
        return read_results(self.path("results.json"))

    @property
    def table(self) -> PredictionTable:
        """Predictions on test."""
        return PredictionTable.read(self.path("predictions/test.parquet"))

    @property
    def is_ensemble(self) -> bool:
        """Whether the run is of several members."""
        return str(self.config["model"]["class_path"]).endswith("EnsembleModule")

    @property
    def members(self) -> "dict[str, Artefacts]":
        """The runs of an ensemble's members by name, or this run."""
        if not self.is_ensemble:
            return {self.folder.name: self}
        content = read_ensemble_file(self.path("ensemble.json"))
        return {
            name: Artefacts(Path(member["path"]).resolve().parent, self.used)
            for name, member in content["members"].items()
        }

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """model.json of each member."""
        return {n: read_json(run.path("model.json")) for n, run in self.members.items()}

    @property
    def audit(self) -> dict[str, Any]:
        """The audit of the samples that results.json names, in the experiment or below `runs`."""
        digest, parents = self.results.meta.get("manifest_digest"), self.folder.resolve().parents
        places = chain(*(p.glob("audit/*/audit.json") for p in parents[:2]), Path().glob(AUDITS))
        for file in map(Path.resolve, places):
            if (content := read_json(file)).get("manifest_digest") == digest:
                self.path(file)
                return content
        raise MissingArtefact("audit.json")

    @property
    def external(self) -> dict[str, Results]:
        """Results of each external validation."""
        folders = sorted(path for path in self.folder.glob("external/*") if path.is_dir())
        if not folders:
            raise MissingArtefact("external")
        return {f.name: read_results(self.path(f.resolve() / "external.json")) for f in folders}

    @property
    def saliency(self) -> list[dict[str, Any]]:
        """Measured saliency maps of this run, or of the ensemble that it is a member of."""
        for parent in self.folder.resolve().parents[:2]:
            for file in sorted(parent.glob("saliency/*/saliency.json")):
                rows = read_json(file)["rows"]
                own = [row for row in rows if row["member"] == self.folder.name]
                if own or file.parent.name == self.folder.name:
                    self.path(file)
                    return own or rows
        raise MissingArtefact("saliency.json")


Fill = Callable[[Artefacts], str]


@dataclass(frozen=True)
class Item:
    """One item of a checklist: its numbers there, our wording, and what fills it, if not a person.

    An item is blank if a file that `fill` reads is missing, or if nothing in it answers the item.
    """

    section: str
    claim: str  # its number in CLAIM 2024, "" if it has none
    tripod: str  # its numbers in TRIPOD+AI
    wording: str
    fill: Fill | None = None


def _technology(run: Artefacts) -> str:
    kind = "an ensemble of neural networks" if run.is_ensemble else "a neural network"
    return f"Deep learning: {kind} classifies images into {plain_value(run.data['class_names'])}"


def _purpose(run: Artefacts) -> str:
    return clinical_use(run.data["clinical_use"], run.data["class_names"]).purpose


def _output(run: Artefacts) -> str:
    use = clinical_use(run.data["clinical_use"], names := run.data["class_names"])
    groups = [f"; {name} is {' or '.join(of)}" for name, of in use.class_groups.items()]
    return (
        f"Probabilities of {', '.join(names)}{''.join(groups)}. Net benefit is stated for "
        f"decisions from the probability {use.threshold:g} on, where "
        f"{use.false_alarms_per_case:.3g} false alarms are as bad as one missed case"
    )


def _data_source(run: Artefacts) -> str:
    source = run.data["source"]
    settings = {k: Path(v).name if k in PATHS else v for k, v in source["init_args"].items()}
    return f"{source['class_path'].rpartition('.')[2]}: {_settings(settings)}"


def _exclusions(run: Artefacts) -> str:
    notes = [_without_ids(n) for n in run.results.meta["notes"] if "left out" in n or " were " in n]
    files, patients = (format_count(run.audit[name], name) for name in ("files", "patients"))
    return f"Included: {files} of {patients}; excluded: {'; '.join(notes) or 'none'}"


def _without_ids(message: str) -> str:
    """A message without the samples that it lists at its end: they may name patients."""
    return message.partition(":")[0]


def _preprocessing(run: Artefacts) -> str:
    return _by_member({name: _settings(model["preprocess"]) for name, model in run.models.items()})


def _unusable_files(run: Artefacts) -> str:
    rule = {"raise": "a file that cannot be read stops the run", "skip": "such files are left out"}
    issues = [_without_ids(i["message"]) for i in run.audit["issues"] if not i["is_leak"]]
    return "; ".join([f"Unreadable files: {rule[run.data['corrupt']]}", *issues])


def _partitions(run: Artefacts) -> str:
    source, fold = run.data["source"]["init_args"], run.data["fold"]
    settings = {k: source[k] for k in ("split", "fractions", "val", "test") if k in source}
    settings |= {"seed": str(source["seed"])} if "seed" in source else {}
    folds = {"fold": fold} if fold["num_folds"] else {}
    return f"By patient; {_settings(settings | folds) or 'as in the folders'}"


def _disjoint(run: Artefacts) -> str:
    leaks = [_without_ids(i["message"]) for i in run.audit["issues"] if i["is_leak"]]
    result = "; ".join(leaks) or "no patient and no copy of an image in two splits"
    return f"Patients, and copies of images: the audit found {result}"


def _counts(run: Artefacts) -> str:
    splits = [
        f"{name}: {', '.join(f'{n:,} {of}' for of, n in counts.items())}"
        for name, counts in run.audit["counts"].items()
    ]
    return "; ".join(splits)


def _network(run: Artefacts) -> str:
    return _by_member(
        {
            name: f"{m['backbone']}, {m['outputs']} outputs ({m['head']} head), "
            f"{m['preprocess']['size']} pixels" + ", pruned" * bool(m["structure"])
            for name, m in run.models.items()
        }
    )


def _libraries(run: Artefacts) -> str:
    files = {name: member.path("best.ckpt") for name, member in run.members.items()}
    versions = {name: checkpoints.read(file, mmap=True)[0].versions for name, file in files.items()}
    return _by_member({name: _settings(of) for name, of in versions.items()})


def _initialization(run: Artefacts) -> str:
    starts = {name: model["pretrained"] for name, model in run.models.items()}
    return _by_member({name: plain_value(s or "random weights") for name, s in starts.items()})


def _training(run: Artefacts) -> str:
    texts = {}
    for name, member in run.members.items():
        config, data = member.config, member.data
        arguments = config["model"]["init_args"]
        used = {k: arguments[k] for k in ("loss", "optimizer", "lr_scheduler") if k in arguments}
        used |= {k: data[k] for k in ("augment", "batch_size")}
        texts[name] = _settings(used | {"max_epochs": config["trainer"]["max_epochs"]})
    return _by_member(texts)


def _by_member(texts: dict[str, str]) -> str:
    """The texts of members, once for members with the same text."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return ". ".join(f"{', '.join(of)}: {text}" for text, of in names.items())


def _settings(settings: dict[str, Any]) -> str:
    """Settings as `optimizer adamw (lr 0.002); batch size 32`."""
    texts = []
    for key, value in _stated(settings).items():
        shown = plain_value(value)
        if isinstance(value, dict):
            inner = ", ".join(f"{plain_name(k)} {plain_value(v)}" for k, v in value.items()
                              if k != "name")  # fmt: skip
            shown = " ".join([*filter(None, [value.get("name")]), *([f"({inner})"] * bool(inner))])
        texts.append(f"{plain_name(key)} {shown}")
    return "; ".join(texts)


def _stated(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that are empty or switched off."""
    inner = {k: _stated(v) if isinstance(v, dict) else v for k, v in settings.items()}
    return {k: v for k, v in inner.items() if v not in (None, {}, [], 0.0, False)}


def _selection(run: Artefacts) -> str:
    texts = {}
    for name, member in run.members.items():
        callbacks = member.config["trainer"]["callbacks"]
        monitors = [c["init_args"]["monitor"] for c in callbacks if c["class_path"] == FINAL_EPOCH]
        epochs = len(pd.read_csv(member.path("history.csv")))
        texts[name] = f"The epoch of best {plain_value(monitors)} among {epochs}"
    return _by_member(texts)


def _ensembling(run: Artefacts) -> str:
    if not run.is_ensemble:
        return "None: a single model"
    voter = read_ensemble_file(run.path("ensemble.json"))["voter"]
    fitted = "fitted on val" if voter.get("fitted_on") else "not fitted"
    return f"{', '.join(run.members)}; voter {voter['name']}, {fitted}"


def _imbalance(run: Artefacts) -> str:
    balances = {name: member.data["balance"] for name, member in run.members.items()}
    used = ("class_weights", "sampler", "max_per_class")
    return _by_member({n: _settings({k: b[k] for k in used}) for n, b in balances.items()})


def _measures(run: Artefacts) -> str:
    bases = {name.partition("/")[0] for name in run.results.metrics}
    return "; ".join(spec.label for name, spec in METRICS.items() if name in bases)


def _intervals(run: Artefacts) -> str:
    methods = {e.method.replace("; ", " and ") for e in run.results.metrics.values()}
    return f"95 % intervals. {'; '.join(sorted(methods))}"


def _usage(run: Artefacts) -> str:
    files = {member.path("README.md").name for member in run.members.values()}
    return f"Code that loads the weights and predicts is in {', '.join(files)}"


def _internal_test(run: Artefacts) -> str:
    accuracy = run.results.metrics["accuracy"]
    size = f"{format_count(accuracy.n, 'images')} of {format_count(accuracy.patients, 'patients')}"
    return f"Held-out test split: {size}"


def _performance(run: Artefacts) -> str:
    return _estimates(run.results.metrics, summary_metrics())


def _diagnostic(run: Artefacts) -> str:
    results = run.results
    names = [f"{m}/{c}" for c in results.class_names for m in ("recall", "specificity", "auroc")]
    return _estimates(results.metrics, names)


def _estimates(metrics: Estimates, names: list[str]) -> str:
    shown = {name: metrics[name] for name in names if name in metrics}
    return "; ".join(f"{metric_label(name)} {format_estimate(e)}" for name, e in shown.items())


def subgroups_of(table: PredictionTable) -> dict[str, dict[str, Estimates]]:
    """Summary metrics for each value of each attribute with a few values of enough images."""
    groups = {}
    for name in table.labeled.attributes:
        sizes = table.labeled.rows[name].astype(str).value_counts()
        if 2 <= len(sizes) <= MAX_VALUES and sizes.min() >= MIN_IMAGES:
            groups[name] = metrics_by_attribute(table.labeled, name)
    return groups


def _subgroups(run: Artefacts) -> str:
    return "; ".join(
        f"{name} {value}: accuracy {format_estimate(metrics['accuracy'])}"
        for name, values in subgroups_of(run.table).items()
        for value, metrics in values.items()
    )


def _errors(run: Artefacts) -> str:
    table = run.table.labeled
    wrong = np.flatnonzero(table.predictions != table.labels)
    names = np.array(table.class_names)
    pairs = Counter(zip(names[table.labels[wrong]], names[table.predictions[wrong]], strict=True))
    shown = [f"{true} predicted as {other}: {n}" for (true, other), n in pairs.most_common(3)]
    return "; ".join([f"{len(wrong)} of {format_count(len(table), 'images')} are wrong", *shown])


def _explanations(run: Artefacts) -> str:
    rows = [row for row in run.saliency if "randomized" not in row["method"]]
    return "; ".join(
        f"{row['method']} of {row['member']}: {plain_name(name)} {format_estimate(Estimate(**e))}"
        for row in rows
        for name, e in row["estimates"].items()
        if name in ("pointing", "deletion") and e["value"] is not None
    )


def _external_test(run: Artefacts) -> str:
    return "; ".join(
        f"{name}: {format_count(r.metrics['accuracy'].n, 'images')}, "
        f"{_estimates(r.metrics, summary_metrics())}"
        for name, r in run.external.items()
    )


def _external_shift(run: Artefacts) -> str:
    groups = {"prevalence/external minus internal": "prevalence of ",
              "images/standardized difference": ""}  # fmt: skip
    return "; ".join(
        f"{name}: {prefix}{shifted} {format_estimate(e, sign='+')}"
        for name, results in run.external.items()
        for group, prefix in groups.items()
        for shifted, e in largest_shifts(results, group).items()
    )


def _recalibration(run: Artefacts) -> str:
    return "; ".join(
        f"{name}, {group.rpartition('/')[2]} local patients: {_estimates(of, ['nll', 'ece'])}"
        for name, results in run.external.items()
        for group, of in results.others.items()
        if group.startswith("recalibrated/") and of["nll"].value is not None
    )


_SECTIONS: dict[str, tuple[tuple[str, str, str, Fill | None], ...]] = {
    "Study": (
        ("1", "1", "Kind of method and what it predicts", _technology),
        ("2", "2", "Summary of design, methods, results and conclusions", None),
        ("3", "3a", "Clinical background, and the role the model is meant to have", None),
        ("", "3b", "Intended use, target population and users", _purpose),
        ("", "3c", "Known health inequalities between groups of patients", None),
        ("4", "4", "Aims and hypotheses", None),
        ("5", "", "Prospective or retrospective design", None),
        ("6", "", "Goal of the study, such as feasibility or non-inferiority", None),
    ),
    "Data": (
        ("7", "5a", "Sources of the data", _data_source),
        ("", "5b", "Dates of collection", None),
        ("", "6a", "Setting: hospitals, countries, level of care", None),
        ("8", "6b", "Who and what was eligible", None),
        ("", "6c", "Treatments received", None),
        ("9", "7", "Preprocessing of the images", _preprocessing),
        ("10", "", "How views, regions or series were selected", None),
        ("11", "", "De-identification", None),
        ("12", "11", "Unreadable, missing and contradictory data", _unusable_files),
        ("13", "", "Acquisition: devices and protocols", None),
        ("", "9a", "Why these inputs were chosen", None),
        ("", "9b", "What the inputs are, and when they are measured", None),
        ("", "9c", "Who assessed inputs that need judgment", None),
        ("19", "12a", "How samples were assigned to splits", _partitions),
        ("20", "", "What is disjoint between the splits", _disjoint),
        ("21", "10", "Reason for the sample size", None),
        ("35", "20a", "Numbers included and excluded", _exclusions),
        ("", "21", "Images of each class in each split", _counts),
        ("36", "20b", "Age, sex and clinical characteristics in each split", None),
    ),
    "Reference standard": (
        ("14", "8a", "Definition of the reference standard", None),
        ("15", "", "Why this reference standard", None),
        ("16", "8b", "Who annotated, with what qualification", None),
        ("17", "8c", "How the test set was annotated, and whether blinded", None),
        ("18", "", "Agreement of the annotators", None),
    ),
    "Model": (
        ("22", "22", "Networks, inputs and outputs", _network),
        ("", "15", "What the output is, and how it becomes a decision", _output),
        ("", "12b", "How inputs enter the model", _preprocessing),
        ("23", "", "Libraries", _libraries),
        ("24", "", "Initial weights", _initialization),
        ("27", "", "Ensemble", _ensembling),
    ),
    "Training": (
        ("25", "12c", "Loss, optimizer, augmentation and length", _training),
        ("26", "", "How the final weights were selected", _selection),
        ("", "13", "Treatment of class imbalance", _imbalance),
    ),
    "Evaluation": (
        ("28", "12e", "Measures of performance", _measures),
        ("29", "", "Intervals", _intervals),
        ("30", "", "Robustness to other data", _external_shift),
        ("31", "", "Explanations and how well they point", _explanations),
        ("32", "", "Internal test", _internal_test),
        ("33", "", "External test", _external_test),
        ("", "12d", "How differences between hospitals were studied", None),
        ("", "12f", "Recalibration: what was tried", _recalibration),
        ("", "12g", "Code that computes predictions", _usage),
        ("", "14", "Fairness: groups that were compared", _subgroups),
        ("", "16", "Differences between training and test data", _external_shift),
    ),
    "Results": (
        ("37", "23a", "Performance with intervals", _performance),
        ("38", "", "Performance for each class", _diagnostic),
        ("39", "", "Errors", _errors),
        ("", "20c", "Distribution of the external data", _external_shift),
        ("", "23b", "Performance in groups and hospitals", _subgroups),
        ("", "24", "Results of recalibration", _recalibration),
    ),
    "Discussion and other information": (
        ("40", "26", "Limitations", None),
        ("41", "25", "Interpretation and implications for practice", None),
        ("", "27a", "What to do with poor or missing images in use", None),
        ("", "27b", "Whether users have to intervene, and their expertise", None),
        ("", "27c", "Next steps", None),
        ("34", "18d", "Registration", None),
        ("42", "18c", "Where the protocol is", None),
        ("43", "18e", "Availability of data and model", None),
        ("", "18f", "Availability of code", None),
        ("44", "18a", "Funding", None),
        ("", "18b", "Conflicts of interest", None),
        ("", "17", "Ethics approval and consent", None),
        ("", "19", "Involvement of patients and the public", None),
    ),
}
ITEMS = [Item(section, *row) for section, rows in _SECTIONS.items() for row in rows]
