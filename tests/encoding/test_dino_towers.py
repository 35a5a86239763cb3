"""DINOv2 and DINOv3 towers, and the image size of any tower."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from support.towers import DINO, write_dino, write_tower
from transformers import AutoModel, CLIPVisionModel

from tokconv.cli.models import tower_cost
from tokconv.config.tree import ClipConfig, Config, DataConfig, ModelConfig
from tokconv.encoding.downsampled import add_downsampled
from tokconv.encoding.pipeline import encode
from tokconv.encoding.towers.families import PUBLISHED_SHAPES
from tokconv.encoding.towers.tower import VisionTower, describe
from tokconv.errors import ConfigError, DataError
from tokconv.store.downsampled import DownsampledTokens

DINOV2 = "facebook/dinov2-small"
NUM_SPECIAL = {name: 1 if "dinov2-" in name and "registers" not in name else 5 for name in DINO}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_dino(tmp_path_factory.mktemp("towers") / name.split("/")[1], name) for name in DINO}


def photo(*size: int) -> Image.Image:
    return Image.effect_noise(size, 60).convert("RGB")


def hidden_state(folder: Path, name: str, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa")
    with torch.inference_mode():
        states: torch.Tensor = model(pixels, output_hidden_states=True).hidden_states[layer]
    return states[:, NUM_SPECIAL[name] :]


@pytest.mark.parametrize(("name", "grid"), [(name, 14 if "dinov3" in name else 24) for name in DINO])
def test_tokens_of_every_dino_are_patch_tokens_bit_for_bit(
    name: str, grid: int, folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels_of_patch = 16 if "dinov3" in name else 14
    # A description loads no weights.
    copy = Path(shutil.copytree(folders[name], tmp_path / "copy"))
    (copy / "model.safetensors").write_bytes(b"no weights")
    spec = describe(ClipConfig(model_name=str(copy)))
    assert (spec.token_grid, spec.dim, spec.num_layers, spec.image_size) == (grid, 32, 3, grid * pixels_of_patch)
    for layer in (-4, -2, -1):
        capfd.readouterr()
        tower = VisionTower(ClipConfig(model_name=str(folders[name]), layer=layer), "cpu")
        assert capfd.readouterr() == ("", "")
        pixels = tower.preprocess([photo(40, 30)])
        assert pixels.shape == (1, 3, spec.image_size, spec.image_size)
        tokens = tower.encode(pixels)
        assert tokens.shape == (1, grid**2, 32)
        assert torch.equal(tokens, hidden_state(folders[name], name, pixels, layer))


def test_the_image_size_changes_grid_processor_and_identity(folders: dict[str, Path]) -> None:
    folder = str(folders[DINOV2])
    specs = {size: describe(ClipConfig(model_name=folder, image_size=size)) for size in (None, 224, 336, 518)}
    assert {size: spec.token_grid for size, spec in specs.items()} == {None: 24, 224: 16, 336: 24, 518: 37}
    assert specs[None] == specs[336]
    # The processor as it was published already makes 224 pixels, of 256; elsewhere the crop takes the whole short side.
    sizes = {size: (spec.preprocessing["size"], spec.preprocessing["crop_size"]) for size, spec in specs.items()}
    assert sizes[224] == ({"shortest_edge": 256}, {"height": 224, "width": 224})
    assert sizes[518] == ({"shortest_edge": 518}, {"height": 518, "width": 518})
    tower = VisionTower(ClipConfig(model_name=folder, image_size=42), "cpu")
    wide = photo(84, 42)
    centre = wide.crop((21, 0, 63, 42))
    assert torch.equal(tower.preprocess([wide]), tower.preprocess([centre]))
    assert tower.encode(tower.preprocess([wide])).shape == (1, 9, 32)
    squeezing = VisionTower(ClipConfig(model_name=str(folders["facebook/dinov3-vits16"]), image_size=48), "cpu")
    assert squeezing.preprocess([wide]).shape == (1, 3, 48, 48)
    assert not torch.equal(squeezing.preprocess([wide]), squeezing.preprocess([centre]))


@pytest.mark.parametrize(
    ("asked", "nearest"), [(335, "nearest: 322 and 336"), (5, "nearest: 14"), (1000, "nearest: 994 and 1008")]
)
def test_a_size_that_is_no_multiple_of_the_patch_is_refused(asked: int, nearest: str, folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=rf"model\.clip\.image_size: got {asked}; .* multiple of 14 \({nearest}\)"):
        describe(ClipConfig(model_name=str(folders[DINOV2]), image_size=asked))


def test_a_clip_tower_sees_other_sizes_with_interpolated_positions(tmp_path: Path) -> None:
    folder = write_tower(tmp_path / "clip")
    own, same = (describe(ClipConfig(model_name=str(folder), image_size=size)) for size in (None, 16))
    assert own == same
    tower = VisionTower(ClipConfig(model_name=str(folder), image_size=24), "cpu")
    pixels = tower.preprocess([photo(40, 30)])
    full = CLIPVisionModel.from_pretrained(folder, attn_implementation="sdpa")
    with torch.inference_mode():
        states = full(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    assert torch.equal(tower.encode(pixels), states[-2][:, 1:])
    assert tower.spec.token_grid == 6
    assert tower.spec.identity() != own.identity()


@pytest.mark.parametrize("name", ["facebook/dinov2-with-registers-small", "facebook/dinov3-vits16"])
def test_a_store_and_its_downsampled_images(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        photo(40, 30 + number).save(tmp_path / "photos" / f"{number}.png")
    clip = ClipConfig(model_name=str(folders[name]), image_size=112)
    data = DataConfig(source="folder", root=str(tmp_path / "photos"), store=str(tmp_path / "store"), num_workers=0)
    store = encode(Config(model=ModelConfig(clip=clip), data=data), device="cpu")
    grid = 7 if "dinov3" in name else 8
    assert (store.token_grid, store.dim) == (grid, 32)
    images = torch.arange(5)
    tower = VisionTower(clip, "cpu")
    pixels = tower.preprocess([Image.open(tmp_path / "photos" / f"{number}.png") for number in range(5)])
    torch.testing.assert_close(store.tokens(images), tower.encode(pixels), atol=4e-3, rtol=2e-3)
    assert add_downsampled(store, 3, images, device="cpu") == ""
    small = DownsampledTokens.find(store, 3)
    assert small is not None
    side = 3 * tower.patch_size
    wanted = hidden_state(folders[name], name, F.interpolate(pixels, (side, side), mode="bicubic", antialias=True), -2)
    torch.testing.assert_close(small.tokens(images), wanted, atol=4e-3, rtol=2e-3)


def test_dino_needs_neither_last_norm_nor_mask_token_but_every_layer(folders: dict[str, Path], tmp_path: Path) -> None:
    """Weights are also found under the names that hub files have, which transformers translates."""
    for name in ("facebook/dinov3-vits16", DINOV2):
        folder, path = folders[name], folders[name] / "model.safetensors"
        copy = tmp_path / name.split("/")[1]
        copy.mkdir()
        for file in ("config.json", "preprocessor_config.json"):
            (copy / file).write_bytes((folder / file).read_bytes())
        weights = load_file(path)
        kept = {
            key: value
            for key, value in weights.items()
            if not key.startswith(("norm.", "layernorm.")) and "mask_token" not in key and "layer.2." not in key
        }
        assert len(kept) < len(weights)
        save_file(kept, copy / "model.safetensors")
        pixels = torch.randn(1, 3, 112, 112)
        towers = [VisionTower(ClipConfig(model_name=str(each)), "cpu") for each in (folder, copy)]
        assert torch.equal(*(tower.encode(pixels) for tower in towers))
        save_file({key: value for key, value in kept.items() if "layer.1.norm1" not in key}, copy / "model.safetensors")
        with pytest.raises(DataError, match="do not fit DINOv"):
            VisionTower(ClipConfig(model_name=str(copy)), "cpu")


@pytest.mark.parametrize(
    ("short", "name", "expected"),
    [
        ("DINOv2-S/14", DINOV2, (24, 384)),
        ("DINOv2-G/14", "facebook/dinov2-giant", (24, 1536)),
        ("DINOv2-L/14-reg", "facebook/dinov2-with-registers-large", (24, 1024)),
    ],
)
def test_the_cost_of_a_published_dino_is_that_of_its_directory(
    short: str, name: str, expected: tuple[int, int], folders: dict[str, Path], tmp_path: Path
) -> None:
    published = tower_cost(ClipConfig(model_name=short))
    assert published == tower_cost(ClipConfig(model_name=name))
    assert published[:3] == (name, *expected)
    assert tower_cost(ClipConfig(model_name=short, image_size=224))[1] == 16
    shape = PUBLISHED_SHAPES[name]
    folder = shutil.copytree(folders[name.replace("large", "small")], tmp_path / "tower")
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": shape.dim, "num_hidden_layers": shape.num_layers}
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))
    assert tower_cost(ClipConfig(model_name=str(folder)))[1:] == published[1:]
