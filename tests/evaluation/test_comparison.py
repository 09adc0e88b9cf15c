from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from evaluation import metrics
from evaluation.comparison import (
    against,
    differences,
    holm,
    mcnemar,
    mean_differences,
    verdict,
)
from evaluation.pooling import Soft, pool
from tests.evaluation.tables import make


def test_mcnemar_is_the_binomial_of_the_differing_images() -> None:
    first = np.array([True] * 9 + [False] * 2 + [True] * 50)
    second = np.array([False] * 9 + [True] * 2 + [True] * 50)
    tail = sum(stats.binom.pmf(i, 11, 0.5) for i in (0, 1, 2))
    assert mcnemar(first, second) == pytest.approx(2 * tail)
    assert mcnemar(first, first) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("films", [1, 4])
def test_differences_are_those_of_the_figures(films: int) -> None:
    one, other = make(400, seed=1, gain=2, films=films), make(400, seed=2, gain=1, films=films)
    found = differences(one, other, draws=400)
    a, b = metrics.figures(one, draws=20), metrics.figures(other, draws=20)
    for name, difference in found.items():
        assert difference.figure.value == pytest.approx(a[name].value - b[name].value), name
        assert difference.figure.low < difference.figure.value < difference.figure.high
    assert verdict("accuracy", found["accuracy"]) == "gain"
    assert verdict("nll", found["nll"]) == "gain"
    back = differences(other, one, draws=400)
    assert verdict("accuracy", back["accuracy"]) == "loss"


def test_three_copies_of_a_pair_say_what_one_says() -> None:
    one, other = make(300, seed=1, films=3), make(300, seed=2, films=3)
    known = differences(one, other, draws=300)
    for name, found in mean_differences([(one, other)] * 3, draws=300).items():
        for end in ("value", "low", "high"):
            expected = getattr(known[name].figure, end)
            assert getattr(found.figure, end) == pytest.approx(expected, abs=1e-9), (name, end)


def test_seeds_share_their_patients_and_average_their_chance() -> None:
    control, seeds = make(300, seed=9), [make(300, seed=s) for s in range(4)]
    each = [differences(one, control, draws=300)["accuracy"].figure for one in seeds]
    found = mean_differences([(one, control) for one in seeds], draws=300)["accuracy"].figure
    assert found.value == pytest.approx(np.mean([figure.value for figure in each]))
    assert (found.n, found.patients) == (each[0].n, each[0].patients)
    widths = [figure.high - figure.low for figure in each]
    # the control's share of the error is in every pair, so it does not shrink by half
    assert 0.55 * np.mean(widths) < found.high - found.low < np.mean(widths)


def test_a_paired_area_difference_is_delongs_test() -> None:
    one, other = make(200, 2, seed=1), make(200, 2, seed=2)
    positive = one.labels == 1
    parts = []
    for table in (one, other):
        score = table.probabilities[:, 1]
        gap = score[positive][:, None] - score[~positive][None, :]
        parts.append(((gap > 0).mean(1), (gap > 0).mean(0)))
    tens, ones = (np.cov([p[i] for p in parts]) for i in (0, 1))
    c = tens / positive.sum() + ones / (~positive).sum()
    error = np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    found = differences(one, other, draws=20)["auroc"]
    freedom = min(positive.sum(), (~positive).sum()) - 1
    expected = 2 * stats.t.sf(abs(found.figure.value) / error, freedom)
    assert found.p == pytest.approx(expected, rel=1e-6)


def test_pairing_narrows_the_difference_of_like_models() -> None:
    one = make(600, seed=1)
    nudge = np.random.default_rng(0).normal(scale=0.1, size=one.logits.shape)
    other = replace(one, logits=one.logits + nudge)
    paired = differences(one, other, draws=500)["nll"].figure
    alone = metrics.figures(one, draws=500)["nll"]
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_five_copies_of_one_net_give_no_gain() -> None:
    table = make(300, films=3)
    council = pool(Soft(), [table] * 5)
    found = against({"soft": council, "again": council}, table, draws=200)["soft"]
    for name, difference in found.items():
        assert difference.figure.value == pytest.approx(0, abs=1e-6), name
        assert verdict(name, difference) == "no evidence of gain", name


def test_no_differing_image_is_not_proof_of_equality() -> None:
    one = make(100)
    other = replace(one, logits=one.logits * 1.5)
    figure = differences(one, other, draws=100)["accuracy"].figure
    assert figure.value == 0
    assert -0.06 < figure.low < -0.02
    assert 0.02 < figure.high < 0.06


def test_holm_turns_a_lucky_voter_into_no_evidence() -> None:
    found = differences(make(80, seed=1, gain=1.9), make(80, seed=2), draws=300)
    lucky = replace(found["accuracy"], p=0.03, figure=replace(found["accuracy"].figure, low=0.01))
    assert verdict("accuracy", lucky) == "gain"
    [corrected, *_] = holm([0.03, 0.5, 0.5, 0.5])
    assert verdict("accuracy", replace(lucky, p=corrected)) == "no evidence of gain"
