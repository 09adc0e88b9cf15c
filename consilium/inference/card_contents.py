"""The files of a run, and functions that each fill one item of a model card from them.

Such a function returns one line of text, or "" if the files do not answer the item.
"""

from collections import Counter
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
from evaluation.metrics.registry import METRICS, metric_label, summary_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports.html import (
    format_count,
    format_estimate,
    format_sample_size,
    plain_name,
    plain_value,
)
from evaluation.reports.subgroups import subgroup_sentence
from evaluation.results import Results, read_results
from evaluation.stats.estimate import Estimate, Estimates
from lightning_modules import checkpoints
from lightning_modules.ensemble import read_ensemble_file

PATHS = ("copies", "files", "root")  # settings whose folders a card does not name
FINAL_EPOCH = "callbacks.BestAndLastCheckpoint"


class MissingArtifact(Exception):
    """A file that a card item is filled from does not exist."""


@dataclass
class Artifacts:
    """Reads the files of a run folder and adds each to `used`; a missing one raises."""

    folder: Path
    used: dict[Path, None]

    def require_file(self, path: Path | str) -> Path:
        """The file at `path` in the run folder (or absolute); MissingArtifact if there is none."""
        file = self.folder / path
        if not file.is_file():
            raise MissingArtifact(str(file))
        self.used[file] = None
        return file

    @property
    def config(self) -> dict[str, Any]:
        """The settings in config.yaml."""
        return read_config(self.require_file("config.yaml"))

    @property
    def data(self) -> dict[str, Any]:
        """The arguments of the data module in config.yaml."""
        return dict(self.config["data"]["init_args"])

    @property
    def results(self) -> Results:
        """The content of results.json: metrics on the test split."""
        results = read_results(file := self.require_file("results.json"))
        if results.findings:
            raise ValueError(f"{file}: a card needs one label per image, not several findings")
        return results

    @property
    def table(self) -> PredictionTable:
        """The predictions on the test split."""
        return PredictionTable.read(self.require_file("predictions/test.parquet"))

    @property
    def is_ensemble(self) -> bool:
        """Whether the model of the run is an ensemble."""
        return str(self.config["model"]["class_path"]).endswith("EnsembleModule")

    @property
    def members(self) -> "dict[str, Artifacts]":
        """The run folders of an ensemble's members by member name; of a single model this one."""
        if not self.is_ensemble:
            return {self.folder.name: self}
        content = read_ensemble_file(self.require_file("ensemble.json"))
        return {
            name: Artifacts(Path(member["path"]).resolve().parent, self.used)
            for name, member in content["members"].items()
        }

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The content of each member's model.json by member name."""
        return {n: read_json(run.require_file("model.json")) for n, run in self.members.items()}

    @property
    def audit(self) -> dict[str, Any]:
        """The audit.json with the manifest digest of results.json; MissingArtifact if none.

        Searched in `audit` of the two folders above the run's, then in `runs`.
        """
        digest, parents = self.results.meta.get("manifest_digest"), self.folder.resolve().parents
        places = chain(*(p.glob("audit/*/audit.json") for p in parents[:2]), Path().glob(AUDITS))
        for file in map(Path.resolve, places):
            if (content := read_json(file)).get("manifest_digest") == digest:
                self.require_file(file)
                return content
        raise MissingArtifact("audit.json")

    @property
    def external(self) -> dict[str, Results]:
        """The results of each external validation by its name."""
        folders = sorted(path for path in self.folder.glob("external/*") if path.is_dir())
        if not folders:
            raise MissingArtifact("external")
        files = {f.name: self.require_file(f.resolve() / "external.json") for f in folders}
        return {name: read_results(file) for name, file in files.items()}

    @property
    def saliency(self) -> list[dict[str, Any]]:
        """Rows of the saliency.json that evaluates the maps of this run or of its ensemble."""
        for parent in self.folder.resolve().parents[:2]:
            for file in sorted(parent.glob("saliency/*/saliency.json")):
                rows = read_json(file)["rows"]
                own = [row for row in rows if row["member"] == self.folder.name]
                if own or file.parent.name == self.folder.name:
                    self.require_file(file)
                    return own or rows
        raise MissingArtifact("saliency.json")


def model_kind(run: Artifacts) -> str:
    """States the kind of model and its classes."""
    kind = "an ensemble of neural networks" if run.is_ensemble else "a neural network"
    return f"Deep learning: {kind} classifies images into {plain_value(run.data['class_names'])}"


def purpose(run: Artifacts) -> str:
    """States the intended use in the config, or "" if there is none."""
    return clinical_use(run.data["clinical_use"], run.data["class_names"]).purpose


def output(run: Artifacts) -> str:
    """States the output classes, groups of classes and the threshold of decisions."""
    use = clinical_use(run.data["clinical_use"], names := run.data["class_names"])
    groups = [f"; {name} is {' or '.join(of)}" for name, of in use.class_groups.items()]
    return (
        f"Probabilities of {', '.join(names)}{''.join(groups)}. Net benefit is stated for "
        f"decisions from the probability {use.threshold:g} on, where "
        f"{use.false_alarms_per_case:.3g} false alarms are as bad as one missed case"
    )


def data_source(run: Artifacts) -> str:
    """States the source of the data and its settings."""
    source = run.data["source"]
    return f"{source['class_path'].rpartition('.')[2]}: {_settings_text(source['init_args'])}"


def exclusions(run: Artifacts) -> str:
    """States how many files and patients were audited, and what was left out."""
    notes = [_without_ids(n) for n in run.results.meta["notes"] if "left out" in n or " were " in n]
    files, patients = (format_count(run.audit[name], name) for name in ("files", "patients"))
    return f"Included: {files} of {patients}; excluded: {'; '.join(notes) or 'none'}"


def _without_ids(message: str) -> str:
    """The message without the sample ids after its colon, which may name patients."""
    return message.partition(":")[0]


def preprocessing(run: Artifacts) -> str:
    """States the preprocessing of each member."""
    return _join_by_text({name: _settings_text(m["preprocess"]) for name, m in run.models.items()})


def unusable_files(run: Artifacts) -> str:
    """States the rule for unreadable files, and the audit's issues that are no leaks."""
    rule = {"raise": "a file that cannot be read stops the run", "skip": "such files are left out"}
    issues = [_without_ids(i["message"]) for i in run.audit["issues"] if not i["is_leak"]]
    return "; ".join([f"Unreadable files: {rule[run.data['corrupt']]}", *issues])


def partitions(run: Artifacts) -> str:
    """States the settings of the splits."""
    source, fold = run.data["source"]["init_args"], run.data["fold"]
    settings = {k: source[k] for k in ("split", "fractions", "val", "test") if k in source}
    settings |= {"seed": str(source["seed"])} if "seed" in source else {}
    folds = {"fold": fold} if fold["num_folds"] else {}
    return f"By patient; {_settings_text(settings | folds) or 'as in the folders'}"


def split_overlaps(run: Artifacts) -> str:
    """States the leaks between the splits, or that there are none."""
    leaks = [_without_ids(i["message"]) for i in run.audit["issues"] if i["is_leak"]]
    result = "; ".join(leaks) or "no patient and no copy of an image in two splits"
    return f"Patients, and copies of images: the audit found {result}"


def class_counts(run: Artifacts) -> str:
    """States the number of images of each class, and of patients, in each split."""
    counts = {
        split: ", ".join(f"{n:,} {name}" for name, n in of.items())
        for split, of in run.audit["counts"].items()
    }
    return plain_value(counts)


def network(run: Artifacts) -> str:
    """States backbone, input, output and initial weights of each member."""
    texts = {}
    for name, model in run.models.items():
        start = plain_value(model["pretrained"] or "random weights")
        inputs = f"{model['preprocess']['size']} pixels, {model['outputs']} outputs"
        texts[name] = f"{model['backbone']}, {inputs} ({model['head']} head), from {start}"
    return _join_by_text(texts)


def libraries(run: Artifacts) -> str:
    """States the versions of the libraries that trained each member."""
    files = {name: member.require_file("best.ckpt") for name, member in run.members.items()}
    versions = {name: checkpoints.read(file, mmap=True)[0].versions for name, file in files.items()}
    return _join_by_text({name: _settings_text(of) for name, of in versions.items()})


def training(run: Artifacts) -> str:
    """States loss, optimizer, schedule, augmentation and balancing of each member."""
    texts = {}
    for name, member in run.members.items():
        config, data = member.config, member.data
        arguments = config["model"]["init_args"]
        used = {k: arguments[k] for k in ("loss", "optimizer", "lr_scheduler") if k in arguments}
        used |= {k: data[k] for k in ("augment", "batch_size")}
        used |= {k: data["balance"][k] for k in ("class_weights", "sampler", "max_per_class")}
        texts[name] = _settings_text(used | {"max_epochs": config["trainer"]["max_epochs"]})
    return _join_by_text(texts)


def _join_by_text(texts: dict[str, str]) -> str:
    """Joins texts by member name into one; members with the same text share it."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return ". ".join(f"{', '.join(of)}: {text}" for text, of in names.items())


def _settings_text(settings: dict[str, Any]) -> str:
    """Settings as `optimizer adamw (lr 0.002); batch size 32`."""
    texts = []
    for key, value in _effective_settings(settings).items():
        shown = plain_value(value)
        if isinstance(value, dict):
            inner = ", ".join(f"{plain_name(k)} {plain_value(v)}" for k, v in value.items()
                              if k != "name")  # fmt: skip
            shown = " ".join([*filter(None, [value.get("name")]), *([f"({inner})"] * bool(inner))])
        texts.append(f"{plain_name(key)} {shown}")
    return "; ".join(texts)


def _effective_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are neither empty nor switched off, with paths cut to file names."""
    inner: dict[str, Any] = {
        k: _effective_settings(v) if isinstance(v, dict) else v for k, v in settings.items()
    }
    for key in inner.keys() & set(PATHS):
        files = inner[key] if isinstance(inner[key], list) else [inner[key]]
        inner[key] = [Path(file).name for file in files if file]
    return {k: v for k, v in inner.items() if v not in (None, {}, [], 0.0, False)}


def selection(run: Artifacts) -> str:
    """States the metric that selected the epoch of each member."""
    texts = {}
    for name, member in run.members.items():
        callbacks = member.config["trainer"]["callbacks"]
        monitors = [c["init_args"]["monitor"] for c in callbacks if c["class_path"] == FINAL_EPOCH]
        epochs = len(pd.read_csv(member.require_file("history.csv")))
        texts[name] = f"The epoch of best {plain_value(monitors)} among {epochs}"
    return _join_by_text(texts)


def ensembling(run: Artifacts) -> str:
    """States the members and the voter."""
    if not run.is_ensemble:
        return "None: a single model"
    voter = read_ensemble_file(run.require_file("ensemble.json"))["voter"]
    fitted = "fitted on val" if voter.get("fitted_on") else "not fitted"
    return f"{', '.join(run.members)}; voter {voter['name']}, {fitted}"


def measures(run: Artifacts) -> str:
    """States the labels of the metrics in results.json."""
    bases = {name.partition("/")[0] for name in run.results.metrics}
    return "; ".join(spec.label for name, spec in METRICS.items() if name in bases)


def intervals(run: Artifacts) -> str:
    """States the methods of the confidence intervals."""
    methods = {e.method.replace("; ", " and ") for e in run.results.metrics.values()}
    return f"95 % intervals. {'; '.join(sorted(methods))}"


def prediction_code(run: Artifacts) -> str:
    """States which files contain code that loads the members and predicts."""
    files = {member.require_file("README.md").name for member in run.members.values()}
    return f"Code that loads the weights and predicts is in {', '.join(files)}"


def performance(run: Artifacts) -> str:
    """States the summary metrics on the test split."""
    return f"Test split, {_summary_text(run.results)}"


def _summary_text(results: Results) -> str:
    """The number of images and the summary metrics with intervals, as text."""
    size = format_sample_size(results.metrics["accuracy"])
    return f"{size}: {_estimates_text(results.metrics, summary_metrics())}"


def class_performance(run: Artifacts) -> str:
    """States recall, specificity and AUROC of each class."""
    results = run.results
    names = [f"{m}/{c}" for c in results.class_names for m in ("recall", "specificity", "auroc")]
    return _estimates_text(results.metrics, names)


def _estimates_text(metrics: Estimates, names: list[str]) -> str:
    """The named metrics with intervals, as text; names without a metric are left out."""
    shown = {name: metrics[name] for name in names if name in metrics}
    return "; ".join(f"{metric_label(name)} {format_estimate(e)}" for name, e in shown.items())


def subgroups(run: Artifacts) -> str:
    """States the accuracy in each subgroup, and for which the model is worse."""
    groups = [group for group in run.results.subgroups if group.attribute]
    shown = [group for group in groups if not group.is_intersection]
    accuracies = [f"{g.name}: accuracy {format_estimate(g.metrics['accuracy'])}" for g in shown]
    return "; ".join([*accuracies, subgroup_sentence(groups)]) if groups else ""


def errors(run: Artifacts) -> str:
    """States the number of wrong predictions and the three most frequent confusions."""
    table = run.table.labeled
    wrong = np.flatnonzero(table.predictions != table.labels)
    names = np.array(table.class_names)
    pairs = Counter(zip(names[table.labels[wrong]], names[table.predictions[wrong]], strict=True))
    shown = [f"{true} predicted as {other}: {n}" for (true, other), n in pairs.most_common(3)]
    return "; ".join([f"{len(wrong)} of {format_count(len(table), 'images')} are wrong", *shown])


def explanations(run: Artifacts) -> str:
    """States pointing game and deletion of the saliency maps of each member."""
    rows = [row for row in run.saliency if "randomized" not in row["method"]]
    return "; ".join(
        f"{row['method']} of {row['member']}: {plain_name(name)} {format_estimate(Estimate(**e))}"
        for row in rows
        for name, e in row["estimates"].items()
        if name in ("pointing", "deletion") and e["value"] is not None
    )


def external_test(run: Artifacts) -> str:
    """States the summary metrics of each external validation."""
    return "; ".join(f"{name}, {_summary_text(results)}" for name, results in run.external.items())


def external_shift(run: Artifacts) -> str:
    """States the largest shifts of prevalence and image statistics in each external validation."""
    groups = {"prevalence/external minus internal": "prevalence of ",
              "images/standardized difference": ""}  # fmt: skip
    return "; ".join(
        f"{name}: {prefix}{shifted} {format_estimate(e, sign='+')}"
        for name, results in run.external.items()
        for group, prefix in groups.items()
        for shifted, e in largest_shifts(results, group).items()
    )


def recalibration(run: Artifacts) -> str:
    """States NLL and ECE after each recalibration in each external validation."""
    return "; ".join(
        f"{name}, {group.rpartition('/')[2]} local patients: {_estimates_text(of, ['nll', 'ece'])}"
        for name, results in run.external.items()
        for group, of in results.others.items()
        if group.startswith("recalibrated/") and of["nll"].value is not None
    )
