import itertools

import numpy as np
import pytest
import torch

from callbacks.sparse_training import masks
from callbacks.sparse_training.masks import PrunableWeight

WEIGHTS = [PrunableWeight("a", (64, 96, 3, 3), 256), PrunableWeight("b", (128, 64), 64),
           PrunableWeight("c", (999, 77), 1)]  # fmt: skip
SIZES = [weight.size for weight in WEIGHTS]


def top_k_by_sorting(weight, k):
    """The definition, by a stable sort: larger magnitudes first, ties in order."""
    order = np.argsort(
        -np.abs(weight.float().reshape(-1).numpy().astype(np.float64)), kind="stable"
    )
    mask = np.zeros(weight.numel(), bool)
    mask[order[:k]] = True
    return torch.from_numpy(mask)


@pytest.mark.parametrize("kind", ["normal", "few values", "tiny", "half", "zeros", "bfloat16"])
@pytest.mark.parametrize("k", [0, 1, 777, 2500, 9999, 10_000])
def test_top_k_equals_a_stable_sort(kind, k):
    weight = torch.randn(10_000, generator=torch.Generator().manual_seed(k))
    weight = {
        "normal": weight,
        "few values": (weight * 2).round(),
        "tiny": weight * 1e-42,  # denormal
        "half": weight.half(),
        "zeros": weight.clamp(min=1),
        "bfloat16": weight.bfloat16(),
    }[kind]
    mask = masks.top_k(masks.magnitude_scores(weight), k)
    assert torch.equal(mask, top_k_by_sorting(weight, k))


def test_of_equal_weights_the_first_remain():
    for k in (0, 1, 2500, 10_000):
        mask = masks.top_k(masks.magnitude_scores(torch.full((10_000,), -0.1)), k)
        assert mask[:k].all()
        assert int(mask.sum()) == k


def test_of_ties_at_every_threshold_the_first_remain():
    weight = torch.randn(500, generator=torch.Generator().manual_seed(0)).round()
    for k in range(0, 501, 9):
        assert torch.equal(
            masks.top_k(masks.magnitude_scores(weight), k), top_k_by_sorting(weight, k)
        )


def test_values_outside_the_mask_stay_pruned():
    weight = torch.zeros(1000)
    previous = torch.arange(1000) >= 400
    mask = masks.top_k(masks.magnitude_scores(weight, previous), 500)
    assert int(mask.sum()) == 500
    assert not mask[:400].any()


def test_scores_refuse_values_without_an_order():
    with pytest.raises(ValueError, match="NaN or infinity"):
        masks.magnitude_scores(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        masks.magnitude_scores(torch.tensor([1.0, float("-inf")]))
    with pytest.raises(ValueError, match="float64 are not float32"):
        masks.magnitude_scores(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"k: 4 is not in 0\.\.3"):
        masks.top_k(torch.zeros(3, dtype=torch.int32), 4)


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("density", [0.0003, 0.1, 0.25, 1 / 3, 0.9, 1.0])
def test_nonzeros_sum_to_the_density_exactly(distribution, density):
    nonzeros = masks.nonzeros_per_weight(WEIGHTS, density, distribution)
    assert sum(nonzeros) == round(density * sum(SIZES))
    assert all(0 <= k <= size for k, size in zip(nonzeros, SIZES, strict=True))


def test_uniform_gives_every_weight_the_same_density():
    nonzeros = masks.nonzeros_per_weight(WEIGHTS, 0.25, "uniform")
    assert all(abs(k - 0.25 * size) <= 1 for k, size in zip(nonzeros, SIZES, strict=True))


def test_erk_is_proportional_to_the_sum_of_dimensions():
    narrow, wide = PrunableWeight("n", (100, 100), 1), PrunableWeight("w", (1000, 1000), 1)
    few, many = masks.nonzeros_per_weight([narrow, wide], 0.01, "erk")
    assert many / few == pytest.approx(2000 / 200, rel=1e-3)
    tiny = PrunableWeight("t", (10, 10), 1)
    assert masks.nonzeros_per_weight([tiny, wide], 0.2, "erk") == [
        100, round(0.2 * 1_000_100) - 100,
    ]  # fmt: skip


@pytest.mark.parametrize("density", [0.1, 0.25, 0.6])
def test_the_macs_distribution_meets_the_budget(density):
    nonzeros = masks.nonzeros_per_weight(WEIGHTS, density, "macs")
    macs = sum(k * weight.positions for k, weight in zip(nonzeros, WEIGHTS, strict=True))
    budget = density * sum(weight.macs for weight in WEIGHTS)
    assert budget - sum(weight.positions for weight in WEIGHTS) < macs <= budget


def test_global_keeps_the_largest_of_all_weights_and_a_minimum_of_each():
    small, large = torch.rand(1000) * 0.1, torch.rand(3000) + 1
    weights = [PrunableWeight("s", (1000,), 1), PrunableWeight("l", (3000,), 1)]
    minimums = masks.nonzeros_per_weight(weights, 0.25, "global")
    assert minimums == [50, 150]
    scores = [masks.magnitude_scores(weight) for weight in (small, large)]
    small_mask, large_mask = masks.top_k_global(scores, 1000, minimums)
    assert torch.equal(small_mask, top_k_by_sorting(small, 50))
    assert torch.equal(large_mask, top_k_by_sorting(large, 950))


def test_counts_of_a_ramp_only_fall_and_end_at_the_final_ones():
    final = masks.nonzeros_per_weight(WEIGHTS, 0.25, "uniform")
    ramp = [masks.interpolate_nonzeros(final, SIZES, (1 - i / 20) ** 3) for i in range(21)]
    assert ramp[0] == SIZES
    assert ramp[-1] == final
    assert all(later <= earlier for before, after in itertools.pairwise(ramp)
               for earlier, later in zip(before, after, strict=True))  # fmt: skip


def test_packed_masks_can_be_unpacked_and_their_digest_depends_on_every_bit():
    mask = torch.rand(64 * 96 * 9, generator=torch.Generator().manual_seed(1)) < 0.25
    packed = masks.pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == mask.numel() // 8
    assert torch.equal(masks.unpack_mask(packed, mask.numel()), mask)
    other = mask.clone()
    other[5] = ~other[5]
    digests = {masks.masks_digest(WEIGHTS[:1], [masks.pack_mask(m)]) for m in (mask, other)}
    assert len(digests) == 2


def test_random_scores_depend_on_the_seed_alone():
    assert torch.equal(masks.random_scores(100, 1), masks.random_scores(100, 1))
    assert not torch.equal(masks.random_scores(100, 1), masks.random_scores(100, 2))


def test_drop_and_grow_exchanges_the_smallest_values_for_the_largest_gradients():
    weight = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    gradient = torch.tensor([9.0, 9.0, 9.0, 9.0, 1.0, 5.0, 2.0, 3.0])
    mask = weight > 0
    scores, gradient_scores = masks.magnitude_scores(weight), masks.magnitude_scores(gradient)
    exchanged = masks.drop_and_grow(scores, gradient_scores, mask, 0.5)
    assert exchanged.tolist() == [True, True, False, False, False, True, False, True]
    assert torch.equal(masks.drop_and_grow(scores, gradient_scores, mask, 0.0), mask)
