"""Shapes, starts, and the independence of samples that WGAN-GP requires of a critic."""

from __future__ import annotations

import pytest
import torch

from tokconv.errors import ConfigError
from tokconv.models.compressor import ResidualCompressor
from tokconv.models.critic import GridCritic
from tokconv.models.decoder import ConvDecoder


@pytest.mark.parametrize("output_grid", [1, 2, 3, 5, 7, 12, 23, 24])
def test_every_grid_has_its_shape_and_gradients(output_grid: int) -> None:
    compressor, decoder = (
        ResidualCompressor(24, 8, output_grid, hidden_dim=8),
        ConvDecoder(24, 8, output_grid, hidden_dim=8),
    )
    tokens = torch.randn(2, 576, 8)
    compressed = compressor(tokens)
    assert compressed.shape == (2, output_grid**2, 8)
    reconstructed = decoder(compressed)
    assert reconstructed.shape == tokens.shape
    reconstructed.square().mean().backward()
    assert all(p.grad is not None for p in [*compressor.parameters(), *decoder.parameters()])


def test_the_branch_adds_nothing_at_first() -> None:
    compressor = ResidualCompressor(6, 4, 3)
    tokens = torch.randn(2, 36, 4)
    linear = compressor.projection(compressor.windows.split(tokens).flatten(2))
    assert torch.equal(compressor(tokens), linear)


def test_units_of_tokens_do_not_matter() -> None:
    torch.manual_seed(0)
    plain = ResidualCompressor(6, 4, 3)
    scaled = ResidualCompressor(6, 4, 3)
    scaled.load_state_dict({**plain.state_dict(), "standardise.mean": torch.full((4,), 7.0),
                            "standardise.scale": torch.tensor(3.0)})  # fmt: skip
    tokens = torch.randn(2, 36, 4)
    assert torch.allclose(scaled(tokens * 3 + 7), plain(tokens) * 3 + 7, atol=1e-5)


def test_a_compressor_without_branch_is_linear() -> None:
    compressor = ResidualCompressor(6, 4, 3, use_residual=False)
    a, b = torch.randn(1, 36, 4), torch.randn(1, 36, 4)
    assert torch.allclose(compressor((a + b) / 2), (compressor(a) + compressor(b)) / 2, atol=1e-5)


def test_a_critic_scores_each_image_alone() -> None:
    critic = GridCritic(4)
    tokens = torch.randn(5, 9, 4)
    alone = torch.stack([critic(image[None])[0] for image in tokens])
    assert torch.allclose(critic(tokens), alone, atol=1e-6)


@pytest.mark.parametrize("output_grid", [4, 5])
@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((2, 577, 8), "leave out the class token, which most towers put first: tokens[:, 1:]"),
        ((2, 581, 8), "leave out 5 class and register tokens, which most towers put first: tokens[:, 5:]"),
        ((576, 8), "add the axis of images: tokens[None]"),
        ((2, 256, 8), "give tokens of the encoder that it was trained on"),
        ((2, 576, 16), "give tokens of the encoder that it was trained on"),
    ],
)
def test_tokens_of_another_shape_are_refused_in_a_sentence(
    output_grid: int, shape: tuple[int, ...], advice: str
) -> None:
    """24 is no multiple of 5: such windows would take the class token for a patch and say nothing."""
    compressor = ResidualCompressor(24, 8, output_grid, num_layers=0, hidden_dim=4)
    with pytest.raises(ConfigError) as error:
        compressor(torch.zeros(shape))
    assert str(error.value) == f"the compressor takes patch tokens [images, 576, 8], got {list(shape)}; {advice}"
