"""The frozen tower: the tokens it returns, what it refuses, and how fast it fails."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.towers import write_full_clip, write_tower
from transformers import CLIPModel, CLIPVisionModel

from tokconv.config.tree import ClipConfig
from tokconv.encoding.towers.families import layer_from_start
from tokconv.encoding.towers.tower import EncoderSpec, VisionTower, describe
from tokconv.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def tower_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(tmp_path_factory.mktemp("towers") / "tiny")


@pytest.fixture
def copy(tower_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tower_dir, tmp_path / "copy"))


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_tower_is_described_without_loading_its_weights(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"no weights")
    spec = describe(ClipConfig(model_name=str(copy)))
    assert (spec.token_grid, spec.dim, spec.num_layers, spec.layer) == (4, 32, 3, 2)
    assert spec.preprocessing["crop_size"] == {"height": 16, "width": 16}
    assert spec.slug == "copy"
    json.dumps(spec.identity())


@pytest.mark.parametrize("layer", [-4, -3, -2, -1, 0, 1, 2, 3])
def test_tokens_are_the_hidden_layer_bit_for_bit(tower_dir: Path, layer: int) -> None:
    full = CLIPVisionModel.from_pretrained(tower_dir, attn_implementation="sdpa")
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = full(pixels, output_hidden_states=True).hidden_states[layer][:, 1:]
    tower = VisionTower(ClipConfig(model_name=str(tower_dir), layer=layer), "cpu")
    tokens = tower.encode(pixels)
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens, wanted)
    assert not any(parameter.requires_grad for parameter in tower.model.parameters())


def test_a_full_clip_directory_gives_the_same_tokens_silently(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_full_clip(tmp_path / "clip")
    capfd.readouterr()
    full = CLIPModel.from_pretrained(folder, attn_implementation="sdpa")
    capfd.readouterr()
    tower = VisionTower(ClipConfig(model_name=str(folder)), "cpu")
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    pixels = tower.preprocess([Image.new("RGB", (9, 5), "red"), Image.new("RGB", (20, 30))])
    assert pixels.shape == (2, 3, 16, 16)
    with torch.inference_mode():
        wanted = full.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.equal(tower.encode(pixels), wanted)


def test_bfloat16_is_close_to_float32(tower_dir: Path) -> None:
    pixels = torch.randn(2, 3, 16, 16)
    exact = VisionTower(ClipConfig(model_name=str(tower_dir)), "cpu").encode(pixels)
    short = VisionTower(ClipConfig(model_name=str(tower_dir), precision="bfloat16"), "cpu").encode(pixels)
    assert short.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, short, dim=-1).min() > 0.99


def test_identity_follows_content_and_not_place(tower_dir: Path, copy: Path, tmp_path: Path) -> None:
    def identity(folder: Path, layer: int = -2) -> dict[str, object]:
        return describe(ClipConfig(model_name=str(folder), layer=layer)).identity()

    (tmp_path / "other").mkdir()
    moved = Path(shutil.copytree(tower_dir, tmp_path / "other" / tower_dir.name))
    assert identity(moved) == identity(tower_dir) == identity(tower_dir, layer=2)
    assert identity(tower_dir, layer=-1) != identity(tower_dir)
    weights = load_file(copy / "model.safetensors")
    weights["embeddings.class_embedding"][0] += 1e-3
    save_file(weights, copy / "model.safetensors")
    assert identity(copy)["revision"] != identity(tower_dir)["revision"]


@pytest.mark.parametrize(("layer", "index"), [(-4, 0), (-2, 2), (-1, 3), (0, 0), (3, 3)])
def test_a_negative_layer_is_counted_from_the_end_of_the_hidden_states(layer: int, index: int) -> None:
    assert layer_from_start(layer, num_layers=3) == index


@pytest.mark.parametrize("layer", [-5, 4, 100])
def test_a_layer_out_of_bounds_is_refused(tower_dir: Path, layer: int) -> None:
    with pytest.raises(ConfigError, match=r"model\.clip\.layer.*from -4 to 3"):
        describe(ClipConfig(model_name=str(tower_dir), layer=layer))


@pytest.mark.parametrize("name", ["/no/such/tower", "./tower", "~/no-such-tower", "a/b/c", "C:\\towers\\tiny"])
def test_a_missing_path_fails_at_once(name: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match="there is no directory"):
        describe(ClipConfig(model_name=name))
    assert time.monotonic() - start < 2


def test_an_unreachable_hub_fails_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    # A closed port stands for a dead network, even on a machine that has one.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(DataError, match="neither a local directory nor reachable"):
        describe(ClipConfig(model_name="openai/clip-vit-no-such-model"))
    assert time.monotonic() - start < 8


def test_a_cached_hub_model_needs_no_network(tower_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    repo = tmp_path / "models--lab--tower"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("c0ffee")
    snapshot = Path(shutil.copytree(tower_dir, repo / "snapshots" / "c0ffee"))
    clip = ClipConfig(model_name="lab/tower")
    spec = describe(clip)
    assert (spec.revision, spec.identity()["name"], spec.slug) == ("c0ffee", "lab/tower", "tower")
    pixels = torch.randn(1, 3, 16, 16)
    wanted = VisionTower(ClipConfig(model_name=str(tower_dir)), "cpu").encode(pixels)
    assert torch.equal(VisionTower(clip, "cpu").encode(pixels), wanted)
    (repo / "snapshots" / "fade").mkdir()
    (snapshot / "model.safetensors").rename(repo / "snapshots" / "fade" / "model.safetensors")
    assert torch.equal(VisionTower(clip, "cpu").encode(pixels), wanted)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "vit_mae"},
            "'vit_mae'; towers of these types .* dinov2, .* data=features data.root=",
        ),
        ({"model_type": "clip_text_model"}, "'clip_text_model'; towers of these types"),
        ({"model_type": "siglip2"}, "NaFlex SigLIP 2 .* use one with a fixed resolution"),
        ({"model_type": "siglip2_vision_model"}, "NaFlex SigLIP 2"),
        ({"image_size": [16, 32]}, r"image_size .* \[16, 32\]; only square"),
        ({"patch_size": [4, 2]}, r"patch_size .* \[4, 2\]; only square"),
        ({"patch_size": 32}, "patch_size .* larger than its image_size"),
        ({"num_channels": 1}, "expects images of 1 channels"),
    ],
)
def test_an_unsupported_tower_is_refused(copy: Path, values: dict[str, object], message: str) -> None:
    edit_config(copy, **values)
    with pytest.raises(DataError, match=message):
        describe(ClipConfig(model_name=str(copy)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_size": {"height": 16, "width": 32}}, "expects images of 16 x 16 .* makes 16 x 32"),
        ({"do_center_crop": False}, "keeps their shape"),
        ({"do_center_crop": False, "do_resize": False}, "does not resize images, or"),
    ],
)
def test_a_processor_that_makes_other_images_is_refused(copy: Path, values: dict[str, object], message: str) -> None:
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(DataError, match=message):
        describe(ClipConfig(model_name=str(copy)))


def test_sizes_may_be_lists_and_a_square_needs_no_crop(copy: Path) -> None:
    edit_config(copy, image_size=[16, 16], patch_size=[4, 4])
    path = copy / "preprocessor_config.json"
    values = {"do_center_crop": False, "size": {"height": 16, "width": 16}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    tower = VisionTower(ClipConfig(model_name=str(copy)), "cpu")
    assert tower.encode(tower.preprocess([Image.new("RGB", (20, 30))])).shape == (1, 16, 32)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"no safetensors weights, only pytorch_model\.bin, a pickle"):
        describe(ClipConfig(model_name=str(copy)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json .* is unreadable"),
        ("config.json", None, "config.json .* is missing"),
        ("config.json", '{"model_type": "clip_vision_model", "patch_size": 0}', "patch_size"),
        ("preprocessor_config.json", None, "has no preprocessor_config.json"),
        ("preprocessor_config.json", '{"crop_size": 8}', "set crop_size and size"),
        ("model.safetensors", None, "no safetensors weights"),
    ],
)
def test_damaged_directories_are_refused(copy: Path, name: str, content: str | None, message: str) -> None:
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content)
    with pytest.raises(DataError, match=message):
        describe(ClipConfig(model_name=str(copy)))


def load(folder: Path) -> EncoderSpec:
    return VisionTower(ClipConfig(model_name=str(folder)), "cpu").spec


def test_weights_that_do_not_fit_are_refused(copy: Path) -> None:
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(DataError, match="cannot load"):
        load(copy)
    path.write_bytes(whole)
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if "layers.0.mlp.fc1" not in name}, path)
    with pytest.raises(DataError, match="do not fit"):
        load(copy)
    save_file({**weights, "encoder.layers.0.self_attn.extra.weight": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="do not fit"):
        load(copy)
    save_file(weights, path)
    edit_config(copy, hidden_size=16)
    with pytest.raises(DataError, match=r"cannot load|do not fit"):
        load(copy)


def test_an_unknown_bundled_tower_is_refused_with_the_known_one() -> None:
    with pytest.raises(DataError, match="did you mean bundled:digits-tower"):
        describe(ClipConfig(model_name="bundled:digit-tower"))
