import itertools

import numpy as np
import pytest
import torch

from callbacks.sparse_training import masks
from callbacks.sparse_training.masks import Layer

LAYERS = [Layer("a", (64, 96, 3, 3), 256), Layer("b", (128, 64), 64), Layer("c", (999, 77), 1)]


def by_sorting(weight, k):
    """The definition, by a stable sort: larger first, of equal ones the first."""
    order = np.argsort(
        -np.abs(weight.float().reshape(-1).numpy().astype(np.float64)), kind="stable"
    )
    mask = np.zeros(weight.numel(), bool)
    mask[order[:k]] = True
    return torch.from_numpy(mask)


@pytest.mark.parametrize("kind", ["normal", "few values", "tiny", "half", "zeros", "brain"])
@pytest.mark.parametrize("k", [0, 1, 777, 2500, 9999, 10_000])
def test_top_k_is_what_sorting_gives(kind, k):
    weight = torch.randn(10_000, generator=torch.Generator().manual_seed(k))
    weight = {
        "normal": weight,
        "few values": (weight * 2).round(),
        "tiny": weight * 1e-42,  # denormal
        "half": weight.half(),
        "zeros": weight.clamp(min=1),
        "brain": weight.bfloat16(),
    }[kind]
    found = masks.top_k(masks.magnitudes(weight), k)
    assert torch.equal(found, by_sorting(weight, k))


def test_all_equal_weights_keep_the_first():
    for k in (0, 1, 2500, 10_000):
        found = masks.top_k(masks.magnitudes(torch.full((10_000,), -0.1)), k)
        assert found[:k].all()
        assert int(found.sum()) == k


def test_ties_across_chunks_keep_the_first(monkeypatch):
    monkeypatch.setattr(masks, "CHUNK", 7)
    weight = torch.randn(500, generator=torch.Generator().manual_seed(0)).round()
    for k in range(0, 501, 9):
        assert torch.equal(masks.top_k(masks.magnitudes(weight), k), by_sorting(weight, k))


def test_pruned_numbers_never_come_back():
    weight = torch.zeros(1000)
    allowed = torch.arange(1000) >= 400
    found = masks.top_k(masks.magnitudes(weight, allowed), 500)
    assert int(found.sum()) == 500
    assert not found[:400].any()


def test_scores_refuse_what_has_no_order():
    with pytest.raises(ValueError, match="NaN or infinity"):
        masks.magnitudes(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        masks.magnitudes(torch.tensor([1.0, float("-inf")]))
    with pytest.raises(ValueError, match="float64 are not float32"):
        masks.magnitudes(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"k: 4 is not in 0\.\.3"):
        masks.top_k(torch.zeros(3, dtype=torch.int32), 4)


@pytest.mark.parametrize("split", ["uniform", "erk"])
@pytest.mark.parametrize("density", [0.0003, 0.1, 0.25, 1 / 3, 0.9, 1.0])
def test_counts_sum_exactly(split, density):
    found = masks.counts(LAYERS, density, split)
    assert sum(found) == round(density * sum(layer.size for layer in LAYERS))
    assert all(0 <= k <= layer.size for k, layer in zip(found, LAYERS, strict=True))


def test_uniform_gives_every_layer_the_same_share():
    found = masks.counts(LAYERS, 0.25, "uniform")
    assert all(abs(k - 0.25 * la.size) <= 1 for k, la in zip(found, LAYERS, strict=True))


def test_erk_follows_the_sum_of_dimensions():
    narrow, wide = masks.counts(
        [Layer("n", (100, 100), 1), Layer("w", (1000, 1000), 1)], 0.01, "erk"
    )
    assert wide / narrow == pytest.approx(2000 / 200, rel=1e-3)
    full = masks.counts([Layer("n", (10, 10), 1), Layer("w", (1000, 1000), 1)], 0.2, "erk")
    assert full == [100, round(0.2 * 1_000_100) - 100]


@pytest.mark.parametrize("density", [0.1, 0.25, 0.6])
def test_macs_meets_the_budget(density):
    found = masks.counts(LAYERS, density, "macs")
    spent = sum(k * la.positions for k, la in zip(found, LAYERS, strict=True))
    budget = density * sum(la.macs for la in LAYERS)
    assert budget - sum(la.positions for la in LAYERS) < spent <= budget


def test_global_keeps_the_largest_of_all_and_a_floor():
    small, large = torch.rand(1000) * 0.1, torch.rand(3000) + 1
    floors = masks.counts([Layer("s", (1000,), 1), Layer("l", (3000,), 1)], 0.25, "global")
    assert floors == [50, 150]
    found = masks.shrunk_globally([masks.magnitudes(w) for w in (small, large)], 1000, floors)
    assert [int(m.sum()) for m in found] == [50, 950]
    assert torch.equal(found[0], by_sorting(small, 50))
    assert torch.equal(found[1], by_sorting(large, 950))


def test_ramp_counts_only_fall_and_end_at_the_final_ones():
    final, sizes = masks.counts(LAYERS, 0.25, "uniform"), [layer.size for layer in LAYERS]
    way = [masks.on_the_way(final, sizes, (1 - i / 20) ** 3) for i in range(21)]
    assert way[0] == sizes
    assert way[-1] == final
    assert all(b <= a for one, two in itertools.pairwise(way)
               for a, b in zip(one, two, strict=True))  # fmt: skip


def test_packed_masks_come_back_and_their_hash_sees_one_bit():
    mask = torch.rand(64 * 96 * 9, generator=torch.Generator().manual_seed(1)) < 0.25
    packed = masks.pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == mask.numel() // 8
    assert torch.equal(masks.unpack(packed, mask.numel()), mask)
    other = mask.clone()
    other[5] = ~other[5]
    one, two = (masks.digest(LAYERS[:1], [masks.pack(m)]) for m in (mask, other))
    assert one != two


def test_random_scores_depend_on_the_seed_alone():
    assert torch.equal(masks.random_scores(100, 1), masks.random_scores(100, 1))
    assert not torch.equal(masks.random_scores(100, 1), masks.random_scores(100, 2))


def test_swapping_exchanges_the_smallest_for_the_fastest_growing():
    weight = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    growth = torch.tensor([9.0, 9.0, 9.0, 9.0, 1.0, 5.0, 2.0, 3.0])
    mask = weight > 0
    found = masks.swapped(masks.magnitudes(weight), masks.magnitudes(growth), mask, 0.5)
    assert found.tolist() == [True, True, False, False, False, True, False, True]
    assert torch.equal(masks.swapped(masks.magnitudes(weight), masks.magnitudes(growth), mask, 0.0),
                       mask)  # fmt: skip
