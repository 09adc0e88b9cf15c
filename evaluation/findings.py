"""Predictions of several findings per image: one two-class problem for each, and their means."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import hstack
from scipy.special import expit

from evaluation.metrics import confusion, ranking
from evaluation.metrics.calibration import nll
from evaluation.metrics.compute import confusion_matrix
from evaluation.predictions import (
    FINDING,
    PredictionTable,
    finding_columns,
    patient_names,
    read_table,
    write_table,
)
from evaluation.stats import bootstrap
from evaluation.stats.auc import auc
from evaluation.stats.bootstrap import DRAWS, Clusters, sum_by_group
from evaluation.stats.estimate import Estimates, replicate_estimate

MACRO, MICRO = "macro", "micro"
ABSENT = "a finding has only known labels of one kind"


@dataclass(frozen=True)
class MultiLabelTable:
    """Logits (n, K) of K findings, each of which may be present, for the samples of a split.

    `rows` has the columns of a `PredictionTable`, with label -1, and a column `finding/<class>` for
    each finding: 1, 0, or -1 if unknown. The sigmoid of a logit is the probability of the finding.
    """

    rows: pd.DataFrame
    logits: np.ndarray
    class_names: list[str]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.rows.reset_index(drop=True))
        rounded = np.asarray(self.logits, np.float32).astype(np.float64)
        object.__setattr__(self, "logits", rounded)
        expected = [FINDING + name for name in self.class_names]
        if (columns := finding_columns(self.rows)) != expected:
            raise ValueError(f"prediction table has the labels {columns}, not {expected}")
        if self.logits.shape != (shape := (len(self.rows), len(self.class_names))):
            raise ValueError(f"logits have shape {self.logits.shape}, the table needs {shape}")
        if not np.isin(self.labels, (-1, 0, 1)).all():
            raise ValueError("labels of findings are 1, 0, or -1 if unknown")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def stored_values(self) -> np.ndarray:
        """What the table has of the network's outputs: the logits."""
        return self.logits

    @property
    def probabilities(self) -> np.ndarray:
        """Probability of each finding, (n, K)."""
        return np.asarray(expit(self.logits))

    @property
    def labels(self) -> np.ndarray:
        """Labels (n, K): 1, 0, or -1 if unknown."""
        return self.rows[finding_columns(self.rows)].to_numpy(np.int64)

    @property
    def patients(self) -> np.ndarray:
        """Patient of each row (n,); a row without a patient counts as a patient of its own."""
        return patient_names(self.rows)

    @property
    def labeled(self) -> "MultiLabelTable":
        """The table of the rows with any known label."""
        known = np.flatnonzero((self.labels >= 0).any(axis=1))
        return replace(self, rows=self.rows.iloc[known], logits=self.logits[known])

    def finding(self, name: str) -> PredictionTable:
        """The two-class table, `no NAME` and `NAME`, of the rows with a known label of a finding.

        The logits are [0, z], so that the softmax is the sigmoid of the finding's logit z.
        """
        column = self.class_names.index(name)
        known = np.flatnonzero(self.labels[:, column] >= 0)
        rows = self.rows.iloc[known].drop(columns=finding_columns(self.rows))
        z = self.logits[known, column]
        meta = {**self.meta, "finding": name}
        if use := meta.get("clinical_use"):
            expected = {k: p for k, p in use.get("expected_prevalence", {}).items() if k == name}
            meta["clinical_use"] = {**use, "expected_prevalence": expected}
        return PredictionTable(
            rows.assign(label=self.labels[known, column]), np.stack([0 * z, z], axis=1),
            [f"no {name}", name], meta,
        )  # fmt: skip

    def findings(self) -> dict[str, PredictionTable]:
        """The tables of `finding` by name, of all findings with any known label."""
        counts = (self.labels >= 0).sum(axis=0)
        return {n: self.finding(n) for n, m in zip(self.class_names, counts, strict=True) if m}

    def write(self, path: Path | str) -> None:
        """Writes Parquet, with class names and `meta` in the metadata of the file."""
        write_table(path, self.rows, {"logits": self.logits}, self.class_names, self.meta)

    @classmethod
    def read(cls, path: Path | str) -> "MultiLabelTable":
        """Reads a file of `write`; anything else is a ValueError with the name of the file."""
        return read_table(path, cls)


AnyTable = PredictionTable | MultiLabelTable


def require_one_label(tables: Mapping[str, AnyTable]) -> dict[str, PredictionTable]:
    """The tables; ValueError if one of them has several findings per image."""
    one = {name: table for name, table in tables.items() if isinstance(table, PredictionTable)}
    if len(one) < len(tables):
        raise ValueError("needs one label per image; the predictions have several findings")
    return one


def label_columns(labels: np.ndarray, class_names: list[str]) -> dict[str, Any]:
    """The label columns of a table's rows, from labels (n,) or those of several findings (n, K)."""
    if labels.ndim == 1:
        return {"label": labels}
    names = [FINDING + name for name in class_names]
    return {"label": -1, **dict(zip(names, labels.T, strict=True))}


def finding_metrics(table: MultiLabelTable) -> dict[str, float]:
    """Loss, accuracy, balanced accuracy and AUROC of an epoch, and `auroc/<finding>`.

    Loss and accuracy are means over all known labels, the others over the findings that have known
    labels of both kinds; NaN if there is none.
    """
    findings = table.findings()
    losses = np.concatenate([nll(of_finding) for of_finding in findings.values()])
    matrices = np.array([confusion_matrix(of_finding) for of_finding in findings.values()])
    areas = {n: auc(t.probabilities[:, 1], t.labels == 1) for n, t in findings.items()}
    areas = {name: value for name, value in areas.items() if np.isfinite(value)}
    has_both = (matrices.sum(axis=2) > 0).all(axis=1)
    recalls = confusion.recall(matrices[has_both])
    return {
        "loss": float(losses.mean()),
        "accuracy": float(confusion.accuracy(matrices.sum(axis=0))),
        "balanced_accuracy": float(recalls.mean()) if has_both.any() else float("nan"),
        "auroc": float(np.mean(list(areas.values()))) if areas else float("nan"),
        **{f"auroc/{name}": float(value) for name, value in areas.items()},
    }


def mean_estimates(table: MultiLabelTable, draws: int = DRAWS, seed: int = 0) -> Estimates:
    """AUROC and average precision of all findings: `auroc/macro`, `auroc/micro`, ...

    The macro mean weights the findings equally; the micro value is that of all known labels
    together. Intervals are from one bootstrap over patients, which all findings share.
    """
    labeled = table.labeled
    clusters = Clusters.from_patients(labeled.patients, np.zeros(len(labeled), int))
    row, column = np.nonzero(labeled.labels >= 0)
    scores, positive = labeled.logits[row, column], labeled.labels[row, column] == 1
    masks = [column == k for k in range(len(table.class_names))]
    masks = [mask for mask in masks if len(np.unique(positive[mask])) == 2]
    masks.append(np.ones(len(row), bool))  # the last: all findings together
    patient = clusters.patient_of_row[row]
    ranks = [ranking.rank_columns(scores[mask], positive[mask]) for mask in masks]
    parts = [
        sum_by_group(columns, patient[mask], clusters.num_patients)
        for columns, mask in zip(ranks, masks, strict=True)
    ]
    ends = np.cumsum([part.shape[1] for part in parts])[:-1]
    functions = {
        "auroc": ranking.auroc_of_counts,
        "average_precision": ranking.average_precision_of_counts,
    }

    def means(sums: np.ndarray) -> np.ndarray:
        """Macro means, then micro values, of the functions, (r, 2 F)."""
        split = np.split(sums, ends, axis=1)
        *values, micro = [ranking.values_of_counts(part, [*functions.values()]) for part in split]
        return np.hstack([np.mean(values, axis=0) if values else micro * np.nan, micro])

    replicates = bootstrap.bootstrap(hstack(parts).tocsr(), means, clusters, draws, seed)
    size = (len(labeled), clusters.num_patients)
    exact = [
        [ranking.ranking_value(function, scores[mask], positive[mask]) for mask in masks]
        for function in functions.values()
    ]
    values = [np.mean(of[:-1]) if masks[1:] else np.nan for of in exact] + [of[-1] for of in exact]
    names = [f"{name}/{mean}" for mean in (MACRO, MICRO) for name in functions]
    shifts = np.array(values) - replicates.value  # not 0 if scores share ranks
    estimate = partial(replicate_estimate, replicates, size=size, if_undefined=ABSENT)
    estimates = {
        name: estimate(at=at, shift=float(np.nan_to_num(shift)))
        for at, (name, shift) in enumerate(zip(names, shifts, strict=True))
    }
    return dict(sorted(estimates.items()))
