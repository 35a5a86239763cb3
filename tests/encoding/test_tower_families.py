"""Every family of towers, from a directory of its architecture to a store; the names of published towers."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.towers import ARCHITECTURES, write_architecture, write_dino
from transformers import AutoModel

from tokconv.config.tree import ClipConfig, Config, DataConfig, ModelConfig
from tokconv.encoding.pipeline import encode
from tokconv.encoding.towers.families import SHORT_NAMES
from tokconv.encoding.towers.tower import VisionTower, describe
from tokconv.errors import DataError

SIGLIP = ARCHITECTURES["google/siglip-base-patch16-224"]
GRIDS = {"ViT-B/32": 7, "ViT-B/16": 14, "ViT-L/14": 16, "ViT-L/14-336": 24, "ViT-H/14": 16}


@pytest.fixture(scope="module")
def siglip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_architecture(tmp_path_factory.mktemp("towers") / "siglip", SIGLIP)


@pytest.fixture
def copy(siglip_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(siglip_dir, tmp_path / "copy"))


def hidden_state(folder: Path, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    """Return the patch tokens of a hidden layer of the whole published model."""
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa")
    tower = getattr(model, "vision_model", model)
    with torch.inference_mode():
        states: torch.Tensor = tower(pixels, output_hidden_states=True).hidden_states[layer]
    return states[:, 1:] if "CLIP" in type(tower).__name__ else states


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_encodes_from_directory_to_store(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    folder = write_architecture(tmp_path / name.split("/")[1], architecture)
    clip = ClipConfig(model_name=str(folder))
    spec = describe(clip)
    assert (spec.token_grid, spec.dim, spec.num_layers, spec.layer) == (architecture.token_grid, architecture.dim, 3, 2)
    assert (spec.image_size, spec.slug) == (architecture.image_size, name.split("/")[1].lower().replace("_", "-"))

    photos = [Image.effect_noise((40, 30), 60).convert("RGB"), Image.new("RGB", (30, 50), "red")]
    for number, photo in enumerate(photos):
        (tmp_path / "photos").mkdir(exist_ok=True)
        photo.save(tmp_path / "photos" / f"{number}.png")
    tower = VisionTower(clip, "cpu")
    pixels = tower.preprocess(photos)
    assert pixels.shape == (2, 3, architecture.image_size, architecture.image_size)
    tokens = tower.encode(pixels)
    assert torch.equal(tokens, hidden_state(folder, pixels, -2))

    data = DataConfig(source="folder", root=str(tmp_path / "photos"), store=str(tmp_path / "store"), num_workers=0)
    store = encode(Config(model=ModelConfig(clip=clip), data=data), device="cpu")
    assert (store.token_grid, store.dim) == (architecture.token_grid, architecture.dim)
    assert store.settings.encoder == spec.identity()
    torch.testing.assert_close(store.tokens(torch.arange(2)), tokens, atol=4e-3, rtol=2e-3)


@pytest.mark.parametrize("layer", [-4, -3, -2, -1, 0, 3])
def test_siglip_tokens_are_the_hidden_layer_without_the_last_norm(siglip_dir: Path, layer: int) -> None:
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tower = VisionTower(ClipConfig(model_name=str(siglip_dir), layer=layer), "cpu")
    assert torch.equal(tower.encode(pixels), hidden_state(siglip_dir, pixels, layer))
    assert len(tower.model.encoder.layers) == layer % 4


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "google/siglip-base-patch16-224"])
def test_a_vision_tower_alone_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    whole = write_architecture(tmp_path / "whole", ARCHITECTURES[name])
    alone = write_architecture(tmp_path / "alone", ARCHITECTURES[name], whole=False)
    pixels = torch.randn(1, 3, 224, 224)
    tokens = [VisionTower(ClipConfig(model_name=str(folder)), "cpu").encode(pixels) for folder in (whole, alone)]
    assert torch.equal(*tokens)


def test_siglip_needs_neither_head_nor_text_tower_nor_last_norm(
    siglip_dir: Path, copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = torch.randn(1, 3, 224, 224)
    wanted = VisionTower(ClipConfig(model_name=str(siglip_dir)), "cpu").encode(pixels)
    kept = ("vision_model.embeddings", "vision_model.encoder.layers.0.", "vision_model.encoder.layers.1.")
    weights = load_file(copy / "model.safetensors")
    assert any("head" in name for name in weights)
    save_file({name: value for name, value in weights.items() if name.startswith(kept)}, copy / "model.safetensors")
    capfd.readouterr()
    tower = VisionTower(ClipConfig(model_name=str(copy)), "cpu")
    assert capfd.readouterr() == ("", "")
    assert torch.equal(tower.encode(pixels), wanted)
    assert not any("head" in name or "post_layernorm" in name for name, _ in tower.model.named_parameters())


def test_siglip_weights_that_do_not_fit_are_refused(copy: Path) -> None:
    path = copy / "model.safetensors"
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if "layers.0.mlp.fc1" not in name}, path)
    with pytest.raises(DataError, match="do not fit SigLIP's vision tower"):
        VisionTower(ClipConfig(model_name=str(copy)), "cpu")
    save_file({**weights, "vision_model.embeddings.class_embedding": torch.zeros(SIGLIP.dim)}, path)
    with pytest.raises(DataError, match="do not fit SigLIP's vision tower"):
        VisionTower(ClipConfig(model_name=str(copy)), "cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": {"height": 224, "width": 192}}, "expects images of 224 x 224 .* makes 224 x 192; set size in"),
        ({"size": {"shortest_edge": 224}}, "keeps their shape"),
        ({"do_resize": False}, "does not resize images, or"),
    ],
)
def test_a_siglip_processor_that_makes_other_images_is_refused(
    copy: Path, values: dict[str, object], message: str
) -> None:
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(DataError, match=message):
        describe(ClipConfig(model_name=str(copy)))


def test_a_config_without_sizes_means_the_base_tower(copy: Path) -> None:
    config = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}, "text_config": {}}
    (copy / "config.json").write_text(json.dumps(config))
    spec = describe(ClipConfig(model_name=str(copy)))
    assert (spec.token_grid, spec.dim, spec.num_layers, spec.layer) == (14, 768, 12, 11)


def cache_as(folder: Path, repo: str, cache: Path) -> None:
    """Copy a directory to the place of a repository in the hub's cache."""
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("c0ffee")
    shutil.copytree(folder, home / "snapshots" / "c0ffee")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache, with a hub that cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


@pytest.mark.parametrize("short", SHORT_NAMES)
def test_a_short_name_is_its_full_name(
    short: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SHORT_NAMES[short]
    if "dinov2" in full:
        tower = write_dino(tmp_path / "tower", full.rsplit("-", 1)[0] + "-small", num_hidden_layers=1)
    else:
        tower = write_architecture(tmp_path / "tower", ARCHITECTURES[full])
    cache_as(tower, full, cache)
    # A directory that happens to have the short name is not taken for the tower.
    (tmp_path / short).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    spec = describe(ClipConfig(model_name=short))
    assert spec == describe(ClipConfig(model_name=full))
    assert (spec.identity()["name"], spec.token_grid) == (full, GRIDS.get(short, 24))
    assert VisionTower(ClipConfig(model_name=short), "cpu").spec == spec


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("ViT-L14", "ViT-L/14"),
        ("vit-l/14", "ViT-L/14"),
        ("ViT-L-14", "ViT-L/14"),
        ("ViT-L/14@336px", "ViT-L/14-336"),
        ("vit_b_32", "ViT-B/32"),
        ("ViT-H-14", "ViT-H/14"),
        ("openai/clip-vit-large-patch-14", "openai/clip-vit-large-patch14"),
        ("clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
        ("dinov2-small", "facebook/dinov2-small"),
        ("dinov2_vits14", "DINOv2-S/14"),
        ("dinov2_vitl14_reg", "DINOv2-L/14-reg"),
    ],
)
def test_a_misspelled_name_suggests_the_nearest_tower(wrong: str, meant: str, cache: Path) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match=rf"did you mean {meant}\?"):
        describe(ClipConfig(model_name=wrong))
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("name", ["ViT-Z", "ViT-G/14"])
def test_an_unknown_short_name_lists_the_known_ones(name: str, cache: Path) -> None:
    with pytest.raises(DataError, match=f"no tower called '{name}'; known: .*ViT-H/14"):
        describe(ClipConfig(model_name=name))


def test_a_correct_name_that_is_unreachable_suggests_no_other(cache: Path) -> None:
    with pytest.raises(DataError, match="neither a local directory nor reachable") as raised:
        describe(ClipConfig(model_name="ViT-L/14"))
    assert "did you mean" not in str(raised.value)
