import numpy as np
import pytest

from datamodules.samplers import (
    PLACEHOLDER,
    BalancedSampler,
    ExactSampler,
    ShuffledSampler,
    WeightedSampler,
)


@pytest.mark.parametrize("size", [21, 5, 1])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_exact_sees_each_once_and_none_is_a_stand_in(size, world):
    parts = [[at for _, at in ExactSampler(size, rank, world)] for rank in range(world)]
    assert sorted(at for part in parts for at in part if at != PLACEHOLDER) == list(range(size))
    for rank, part in enumerate(parts):
        assert len(part) == len(ExactSampler(size, rank, world))
        assert part == [PLACEHOLDER] if rank >= size else all(at % world == rank for at in part)


def test_shuffled_is_a_function_of_seed_and_epoch():
    sampler = ShuffledSampler(50, seed=3)
    first = list(sampler)
    assert first == list(ShuffledSampler(50, seed=3))
    assert sorted(position for _, position in first) == list(range(50))
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert [p for _, p in second] != [p for _, p in first]
    assert list(ShuffledSampler(50, seed=4)) != first


@pytest.mark.parametrize(("size", "world", "each"), [(10, 2, 5), (11, 2, 6), (1, 3, 1)])
def test_shuffled_gives_every_process_as_many(size, world, each):
    parts = [list(ShuffledSampler(size, 0, rank, world)) for rank in range(world)]
    assert [len(part) for part in parts] == [each] * world
    assert {position for part in parts for _, position in part} == set(range(size))
    whole = [position for _, position in ShuffledSampler(size)]
    assert [position for pair in zip(*parts, strict=True) for _, position in pair][:size] == whole


LABELS = np.array([0] * 90 + [1] * 9 + [2])


def test_balanced_sees_each_class_equally_often_and_all_of_it_first():
    sampler = BalancedSampler(LABELS, seed=1)
    positions = np.array([position for _, position in sampler])
    assert sorted(np.bincount(LABELS[positions]).tolist()) == [33, 33, 34]
    assert set(range(90, 99)) <= set(positions.tolist())
    times = np.bincount(positions, minlength=100)[90:99]
    assert times.max() - times.min() <= 1


def test_weighted_draws_classes_equally_likely():
    draws = []
    sampler = WeightedSampler(LABELS, seed=1)
    for epoch in range(60):
        sampler.set_epoch(epoch)
        draws += [LABELS[position] for _, position in sampler]
    share = np.bincount(draws) / len(draws)
    assert np.abs(share - 1 / 3).max() < 0.02


@pytest.mark.parametrize("kind", [WeightedSampler, BalancedSampler])
def test_processes_divide_one_order_among_them(kind):
    whole = [position for _, position in kind(LABELS, seed=2)]
    parts = [[p for _, p in kind(LABELS, 2, rank, 3)] for rank in range(3)]
    assert [p for turn in zip(*parts, strict=True) for p in turn][:100] == whole
    assert len({len(part) for part in parts}) == 1
