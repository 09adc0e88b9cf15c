import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from datamodules.samplers import (
    PLACEHOLDER,
    Balance,
    BalancedSampler,
    ExactSampler,
    ShuffledSampler,
    WeightedSampler,
)

UNEVEN = np.array([0] * 90 + [1] * 9 + [2])
LABELS = np.array([0] * 60 + [1] * 30 + [2] * 10)
NAMES = ["a", "b", "c"]


def class_weights(*args, **kwargs):
    return np.array(Balance(*args, **kwargs).compute_class_weights(LABELS, NAMES))


@pytest.mark.parametrize("size", [21, 5, 1])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_exact_sampler_gives_each_sample_once_and_a_placeholder_if_there_is_none(size, world_size):
    parts = [[p for _, p in ExactSampler(size, rank, world_size)] for rank in range(world_size)]
    assert sorted(p for part in parts for p in part if p != PLACEHOLDER) == list(range(size))
    for rank, part in enumerate(parts):
        assert len(part) == len(ExactSampler(size, rank, world_size))
        expected = list(range(rank, size, world_size)) or [PLACEHOLDER]
        assert part == expected


def test_shuffled_order_depends_on_seed_and_epoch():
    sampler = ShuffledSampler(np.zeros(50), seed=3)
    first = list(sampler)
    assert first == list(ShuffledSampler(np.zeros(50), seed=3))
    assert sorted(position for _, position in first) == list(range(50))
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert [p for _, p in second] != [p for _, p in first]
    assert list(ShuffledSampler(np.zeros(50), seed=4)) != first


@pytest.mark.parametrize(("size", "world_size", "count"), [(10, 2, 5), (11, 2, 6), (1, 3, 1)])
def test_shuffled_sampler_gives_every_process_the_same_number(size, world_size, count):
    parts = [
        list(ShuffledSampler(np.zeros(size), 0, rank, world_size)) for rank in range(world_size)
    ]
    assert [len(part) for part in parts] == [count] * world_size
    assert {position for part in parts for _, position in part} == set(range(size))
    order = [position for _, position in ShuffledSampler(np.zeros(size))]
    interleaved = [position for turn in zip(*parts, strict=True) for _, position in turn]
    assert interleaved[:size] == order


def test_balanced_sampler_gives_each_class_equally_often_and_all_of_it_before_repeating():
    sampler = BalancedSampler(UNEVEN, seed=1)
    positions = np.array([position for _, position in sampler])
    assert sorted(np.bincount(UNEVEN[positions]).tolist()) == [33, 33, 34]
    assert set(range(90, 99)) <= set(positions.tolist())
    times = np.bincount(positions, minlength=100)[90:99]
    assert times.max() - times.min() <= 1


def test_weighted_sampler_draws_classes_equally_likely():
    draws = []
    sampler = WeightedSampler(UNEVEN, seed=1)
    for epoch in range(60):
        sampler.set_epoch(epoch)
        draws += [UNEVEN[position] for _, position in sampler]
    ratios = np.bincount(draws) / len(draws)
    assert np.abs(ratios - 1 / 3).max() < 0.02


@pytest.mark.parametrize("sampler", [WeightedSampler, BalancedSampler])
def test_processes_divide_one_order_among_them(sampler):
    order = [position for _, position in sampler(UNEVEN, seed=2)]
    parts = [[p for _, p in sampler(UNEVEN, 2, rank, 3)] for rank in range(3)]
    assert [p for turn in zip(*parts, strict=True) for p in turn][:100] == order
    assert len({len(part) for part in parts}) == 1


def test_inverse_weights_equal_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(class_weights("inverse"), expected)


@pytest.mark.parametrize("kind", ["inverse", "sqrt", "effective"])
def test_the_mean_weight_of_a_sample_is_one_and_rare_classes_weigh_more(kind):
    weights = class_weights(kind)
    assert weights[LABELS].mean() == pytest.approx(1)
    assert weights[0] < weights[1] < weights[2]


def test_effective_weights_range_from_equal_to_inverse():
    np.testing.assert_allclose(class_weights("effective", beta=0.0), [1, 1, 1])
    nearly_inverse = class_weights("effective", beta=1 - 1e-9)
    np.testing.assert_allclose(nearly_inverse, class_weights("inverse"), rtol=1e-5)


def test_sqrt_weights_are_the_square_root_of_inverse_weights():
    weights = class_weights("sqrt")
    assert weights[2] / weights[0] == pytest.approx(np.sqrt(6))


def test_given_weights_are_scaled_and_checked():
    weights = class_weights([1, 2, 3])
    np.testing.assert_allclose(weights / weights[0], [1, 2, 3])
    assert weights[LABELS].mean() == pytest.approx(1)
    with pytest.raises(
        ValueError, match=r"class_weights is \[0, 0, 0\]; all samples have weight 0"
    ):
        Balance([0, 0, 0]).compute_class_weights(LABELS, NAMES)
    assert Balance().compute_class_weights(LABELS, NAMES) is None
    with pytest.raises(ValueError, match=r"class_weights is \[1, 2\]; give one finite value"):
        Balance([1, 2]).compute_class_weights(LABELS, NAMES)
    with pytest.raises(ValueError, match=r"train has none of \['d'\]"):
        Balance("inverse").compute_class_weights(LABELS, [*NAMES, "d"])


def test_max_per_class_chooses_the_same_samples_when_others_are_added():
    ids = [f"image{k}" for k in range(100)]
    rows = Balance(max_per_class=20).limit_rows(np.arange(100) + 7, LABELS, ids)
    assert np.bincount(LABELS[rows - 7]).tolist() == [20, 20, 10]
    assert rows.tolist() == sorted(rows.tolist())
    fewer = Balance(max_per_class=20).limit_rows(np.arange(50), LABELS[:50], ids[:50])
    assert set(fewer) <= set(range(50))
    assert set(rows - 7) & set(range(50)) <= set(fewer)


def test_class_weights_with_a_balancing_sampler_give_a_warning():
    with pytest.warns(UserWarning, match="'balanced' both favor rare classes"):
        Balance("inverse", "balanced")
    with pytest.raises(ValueError, match="max_per_class is 0"):
        Balance(max_per_class=0)
