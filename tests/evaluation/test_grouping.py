from dataclasses import replace

import numpy as np
import pytest

from evaluation.grouping import aggregate
from evaluation.predictions import PredictionTable
from tests.evaluation.tables import make_table


def two_studies() -> PredictionTable:
    """Two studies of two images each, two classes; labels agree within a study."""
    table = make_table(4, 2, images_per_patient=2)
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
def test_images_of_a_study_are_pooled_as_computed_by_hand(rule: str, expected: list[float]) -> None:
    studies = aggregate(two_studies(), "study", rule)
    np.testing.assert_allclose(studies.probabilities[:, 1], expected, atol=1e-6)
    assert list(studies.labels) == [0, 1]
    assert list(studies.rows["id"]) == ["patient0/study0", "patient1/study1"]


def test_study_of_one_image_has_its_probabilities() -> None:
    table = make_table(40)
    for rule in ("mean", "max", "noisy_or"):
        studies = aggregate(table, "study", rule)
        order = [list(table.rows["study"]).index(i.split("/")[1]) for i in studies.rows["id"]]
        if rule == "noisy_or":
            assert np.array_equal(studies.predictions, table.predictions[order])
        np.testing.assert_allclose(studies.probabilities, table.probabilities[order], atol=1e-6)


def test_studies_of_two_patients_with_one_name_are_two_studies() -> None:
    table = make_table(8, 2)
    rows = table.rows.assign(study="study1", patient=np.repeat([f"p{i}" for i in range(4)], 2))
    rows["label"] = np.repeat([0, 1, 0, 1], 2)
    assert len(aggregate(replace(table, rows=rows), "study")) == 4


def test_different_labels_missing_studies_and_unknown_rules_are_errors() -> None:
    table = make_table(8, 2)
    mixed = table.rows.assign(patient="p", study="s", label=[0, 1] * 4)
    with pytest.raises(ValueError, match="study 'p/s' has images with different labels"):
        aggregate(replace(table, rows=mixed), "study")
    with pytest.raises(ValueError, match="id 'image0' has no study"):
        aggregate(replace(table, rows=table.rows.assign(study="")), "study")
    with pytest.raises(ValueError, match="rule 'median' is not among"):
        aggregate(table, "study", "median")


def test_attribute_is_empty_if_images_of_a_study_differ() -> None:
    table = two_studies()
    rows = table.rows.assign(body_part=["wrist", "wrist", "elbow", "hand"])
    body_part = aggregate(replace(table, rows=rows), "study").rows["body_part"]
    assert body_part[0] == "wrist"
    assert body_part.isna()[1]
