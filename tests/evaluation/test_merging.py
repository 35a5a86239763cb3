"""Token merging: exact counts, the most similar tokens first, groups that are a partition, and unmerging."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokconv.evaluation.baselines.merging import Merge, prumerge, tome, unmerge

BOTH = pytest.mark.parametrize("merge", [tome, prumerge])


def _tokens(images: int = 3, tokens: int = 36, dim: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(images, tokens, dim, generator=torch.Generator().manual_seed(seed))


@BOTH
@pytest.mark.parametrize("count", [1, 2, 7, 16, 17, 18, 35, 36])
def test_the_number_of_merged_tokens_is_exact(merge: Merge, count: int) -> None:
    tokens = _tokens()
    merged, groups = merge(tokens, count)
    assert merged.shape == (3, count, 8)
    assert groups.shape == (3, 36)
    for image in groups:
        assert image.unique().tolist() == list(range(count))


@BOTH
def test_groups_are_ordered_by_their_first_token(merge: Merge) -> None:
    _, groups = merge(_tokens(), 9)
    for image in groups:
        first = [int((image == group).nonzero()[0]) for group in range(9)]
        assert first == sorted(first)


@BOTH
@pytest.mark.parametrize("tokens", [36, 35], ids=["even", "odd"])
def test_nothing_to_merge_is_the_identity(merge: Merge, tokens: int) -> None:
    before = _tokens(tokens=tokens)
    merged, groups = merge(before, tokens)
    assert torch.allclose(merged, before, atol=1e-6)
    assert torch.allclose(unmerge(merged, groups), before, atol=1e-6)


@BOTH
def test_images_of_a_batch_do_not_influence_each_other(merge: Merge) -> None:
    tokens = _tokens()
    together, groups = merge(tokens, 9)
    for index in range(len(tokens)):
        single, own = merge(tokens[index : index + 1], 9)
        assert torch.allclose(single[0], together[index], atol=1e-6)
        assert torch.equal(own[0], groups[index])


@BOTH
def test_merging_repeats_exactly(merge: Merge) -> None:
    first, second = merge(_tokens(), 9), merge(_tokens(), 9)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_a_merged_token_is_the_mean_of_all_its_members() -> None:
    tokens = _tokens()
    merged, groups = tome(tokens, 5)
    for image in range(len(tokens)):
        for group in range(5):
            assert torch.allclose(merged[image, group], tokens[image, groups[image] == group].mean(0), atol=1e-5)


def test_identical_tokens_are_merged_first() -> None:
    tokens = _tokens(images=1, tokens=24)
    # Six pairs of equal tokens, one in the first set and one in the second, far apart in the image.
    for first, second in ((0, 23), (2, 13), (4, 9), (6, 1), (8, 19), (10, 7)):
        tokens[0, second] = tokens[0, first]
    merged, groups = tome(tokens, 18)
    assert torch.allclose(unmerge(merged, groups), tokens, atol=1e-6)


def test_no_more_distinct_tokens_than_merged_tokens_come_back_exactly() -> None:
    kinds = torch.nn.functional.normalize(_tokens(images=1, tokens=4), dim=-1)
    choice = torch.randint(4, (1, 36), generator=torch.Generator().manual_seed(1))
    tokens = unmerge(kinds, choice)
    merged, groups = tome(tokens, 18)
    assert torch.allclose(unmerge(merged, groups), tokens, atol=1e-6)


def test_the_longest_tokens_are_selected_and_the_others_join_the_most_similar() -> None:
    tokens = 0.1 * _tokens(images=1)
    tokens[0, 5], tokens[0, 20] = 10 * torch.eye(8)[0], 10 * torch.eye(8)[1]
    merged, groups = prumerge(tokens, 2)
    expected = (tokens[0, :, 1] > tokens[0, :, 0]).long()
    # Group 0 is the one that holds the first token.
    assert torch.equal(groups[0], expected if expected[0] == 0 else 1 - expected)
    # Weighted by length, so the selected token prevails.
    assert torch.cosine_similarity(merged[0, groups[0, 5]], tokens[0, 5], dim=0) > 0.99


@BOTH
def test_tokens_without_length_are_merged_like_any_other(merge: Merge) -> None:
    merged, groups = merge(torch.zeros(2, 16, 8), 4)
    assert torch.equal(unmerge(merged, groups), torch.zeros(2, 16, 8))
