import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from datamodules.samplers import Balance

LABELS = np.array([0] * 60 + [1] * 30 + [2] * 10)
NAMES = ["a", "b", "c"]


def test_inverse_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(Balance("inverse").weights(LABELS, NAMES), expected)


@pytest.mark.parametrize("kind", ["inverse", "sqrt", "effective"])
def test_the_mean_over_samples_is_one_and_rare_classes_weigh_more(kind):
    weights = np.array(Balance(kind).weights(LABELS, NAMES))
    assert weights[LABELS].mean() == pytest.approx(1)
    assert weights[0] < weights[1] < weights[2]


def test_effective_runs_from_equal_to_inverse():
    equal = Balance("effective", beta=0.0).weights(LABELS, NAMES)
    np.testing.assert_allclose(equal, [1, 1, 1])
    nearly = Balance("effective", beta=1 - 1e-9).weights(LABELS, NAMES)
    np.testing.assert_allclose(nearly, Balance("inverse").weights(LABELS, NAMES), rtol=1e-5)


def test_sqrt_is_the_root_of_inverse():
    weights = np.array(Balance("sqrt").weights(LABELS, NAMES))
    assert weights[2] / weights[0] == pytest.approx(np.sqrt(6))


def test_given_weights_are_taken_and_checked():
    assert Balance([1, 2, 3]).weights(LABELS, NAMES) == [1.0, 2.0, 3.0]
    assert Balance().weights(LABELS, NAMES) is None
    with pytest.raises(ValueError, match=r"class_weights is \[1, 2\]; give one value"):
        Balance([1, 2]).weights(LABELS, NAMES)
    with pytest.raises(ValueError, match=r"train has none of \['d'\]"):
        Balance("inverse").weights(LABELS, [*NAMES, "d"])


def test_limit_keeps_the_same_few_of_each_class_whatever_else_comes():
    ids = [f"film{k}" for k in range(100)]
    kept = Balance(limit=20).limited(np.arange(100) + 7, LABELS, ids)
    assert np.bincount(LABELS[kept - 7]).tolist() == [20, 20, 10]
    assert kept.tolist() == sorted(kept.tolist())
    fewer = Balance(limit=20).limited(np.arange(50), LABELS[:50], ids[:50])
    assert len(set(fewer) - set(range(50))) == 0
    assert set(kept - 7) & set(range(50)) <= set(fewer)


def test_both_remedies_at_once_are_warned_about():
    with pytest.warns(UserWarning, match="'balanced' both lift the rare classes"):
        Balance("inverse", "balanced")
    with pytest.raises(ValueError, match="limit is 0"):
        Balance(limit=0)
