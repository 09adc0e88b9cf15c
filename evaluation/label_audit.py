"""Which labels are doubtful, by predictions of models that were not trained on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evaluation.predictions import PredictionTable, has_grades, in_class_order, safe_log
from evaluation.stats.estimate import Estimate, mean_estimate

SUREST = 0.2  # of the images of each predicted class, on which the share of errors is measured


@dataclass(frozen=True)
class LabelAudit:
    """Labels in the order of their doubtfulness, and how many are wrong.

    `ranking` has the columns id, label, suggestion (the most probable class), p_label,
    p_suggestion and agreement (the fraction of the models that predict the suggestion).
    `wrong` is the fraction of the labels that contradict the prediction where it is surest: models
    hardly err on these images, so that about as many labels are wrong. Where errors are rarer on
    clear images than on others, it is too low.
    """

    ranking: pd.DataFrame
    wrong: Estimate


def audit_labels(tables: Sequence[PredictionTable]) -> LabelAudit:
    """Ranks the labels of all images in the tables, whose models were not trained on them."""
    table, agreement = mean_of_models([table.labeled for table in tables])
    p, labels, names = table.probabilities, table.labels, np.array(table.class_names)
    at, suggested = np.arange(len(labels)), p.argmax(axis=1)
    columns = {
        "id": table.rows["id"],
        "label": names[labels],
        "suggestion": names[suggested],
        "p_label": p[at, labels].round(4),
        "p_suggestion": p[at, suggested].round(4),
        "agreement": agreement.round(4),
    }
    order = np.argsort(-label_doubt(table), kind="stable")
    is_sure = surest_of_each_class(p)
    wrong = mean_estimate(table.patients[is_sure], (suggested != labels)[is_sure])
    return LabelAudit(pd.DataFrame(columns).iloc[order].reset_index(drop=True), wrong)


def mean_of_models(tables: Sequence[PredictionTable]) -> tuple[PredictionTable, np.ndarray]:
    """Mean probabilities of each image over the tables that have it, and agreement (n,) with them.

    Agreement is the fraction of these tables that predict the most probable class. ValueError if
    tables give an image different labels.
    """
    tables = [in_class_order(table, tables[0].class_names) for table in tables]
    rows = pd.concat([table.rows for table in tables], ignore_index=True)
    p = np.concatenate([table.probabilities for table in tables])
    image, ids = pd.factorize(rows["id"])
    if (differs := rows.groupby(image)["label"].nunique() > 1).any():
        raise ValueError(f"id {ids[int(differs.argmax())]!r} has different labels in two tables")
    counts, mean = np.bincount(image), np.zeros((len(ids), p.shape[1]))
    np.add.at(mean, image, p)
    mean /= counts[:, None]
    agrees = p.argmax(axis=1) == mean.argmax(axis=1)[image]
    first = rows.drop_duplicates("id")
    table = PredictionTable(first, safe_log(mean), tables[0].class_names)
    return table, np.bincount(image, agrees) / counts


def label_doubt(table: PredictionTable) -> np.ndarray:
    """How doubtful each label is (n,), from -1 to 1, or in grades if classes are grades.

    Of grades it is the mean distance of the label from the predicted grade. Otherwise it is how
    much the most probable other class exceeds the label, each compared with the mean probability
    that images with the class have: a class that is always uncertain is not doubtful for that.
    """
    p, labels, has_label = table.probabilities, table.labels, table.one_hot_labels
    if has_grades(table.class_names):
        distance = np.abs(np.arange(p.shape[1]) - labels[:, None])
        return np.asarray((p * distance).sum(axis=1))
    usual = (p * has_label).sum(axis=0) / np.maximum(has_label.sum(axis=0), 1)
    excess = p - usual
    others = np.where(has_label, -np.inf, excess).max(axis=1)
    return np.asarray(others - excess[has_label])


def surest_of_each_class(probabilities: np.ndarray) -> np.ndarray:
    """Whether each row (n,) is among the surest fifth of those with the same predicted class."""
    predicted, is_sure = probabilities.argmax(axis=1), np.zeros(len(probabilities), bool)
    for k in np.unique(predicted):
        rows = np.flatnonzero(predicted == k)
        order = np.argsort(-probabilities[rows, k], kind="stable")
        is_sure[rows[order[: int(np.ceil(SUREST * len(rows)))]]] = True
    return is_sure
