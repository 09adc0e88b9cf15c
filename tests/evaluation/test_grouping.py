from dataclasses import replace

import numpy as np
import pytest

from evaluation.grouping import by_level
from evaluation.predictions import PredictionTable
from tests.evaluation.tables import make


def _films() -> PredictionTable:
    """Two studies of two films each, two classes; labels agree within a study."""
    table = make(4, 2, films=2)
    p = np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    return replace(table, logits=np.log(p), rows=table.rows.assign(label=[0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", [0.3, 0.4]),
        ("max", [0.4, 0.7]),
        ("noisy_or", [1 - 0.8 * 0.6, 1 - 0.3 * 0.9]),
    ],
)
def test_films_of_a_study_are_pooled_by_hand(rule: str, expected: list[float]) -> None:
    found = by_level(_films(), "study", rule)
    np.testing.assert_allclose(found.probabilities[:, 1], expected, atol=1e-6)
    assert list(found.labels) == [0, 1]
    assert list(found.rows["id"]) == ["patient0/study0", "patient1/study1"]


def test_a_study_of_one_film_is_that_film() -> None:
    table = make(40)
    for rule in ("mean", "max", "noisy_or"):
        found = by_level(table, "study", rule)
        order = [list(table.rows["study"]).index(i.split("/")[1]) for i in found.rows["id"]]
        if rule == "noisy_or":
            assert np.array_equal(found.logits.argmax(1), table.logits[order].argmax(1))
        np.testing.assert_allclose(found.probabilities, table.probabilities[order], atol=1e-6)


def test_two_patients_studies_of_one_name_stay_apart() -> None:
    table = make(8, 2)
    rows = table.rows.assign(study="study1", patient=np.repeat([f"p{i}" for i in range(4)], 2))
    rows["label"] = np.repeat([0, 1, 0, 1], 2)
    assert len(by_level(replace(table, rows=rows), "study")) == 4


def test_films_that_disagree_and_rows_without_a_study_are_refused() -> None:
    table = make(8, 2)
    mixed = table.rows.assign(patient="p", study="s", label=[0, 1] * 4)
    with pytest.raises(ValueError, match="study 'p/s' has films of several labels"):
        by_level(replace(table, rows=mixed), "study")
    with pytest.raises(ValueError, match="id 'image0' belongs to no study"):
        by_level(replace(table, rows=table.rows.assign(study="")), "study")
    with pytest.raises(ValueError, match="rule 'median' is not among"):
        by_level(table, "study", "median")


def test_an_attribute_stays_where_the_films_agree() -> None:
    table = _films()
    rows = table.rows.assign(body_part=["wrist", "wrist", "elbow", "hand"])
    found = by_level(replace(table, rows=rows), "study").rows["body_part"]
    assert found[0] == "wrist"
    assert found.isna()[1]
