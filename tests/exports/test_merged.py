"""A model and its compressor in one folder: loaded in a fresh process, it is the model that was merged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.artefacts import write_export
from support.llavas import make_llava, make_processor
from support.towers import write_tower
from support.vlms import DIM, TOKEN_GRID, Vlm, make_vlm
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokconv.hf  # noqa: F401 (registers the classes)
from tokconv.cli.main import main
from tokconv.errors import CheckpointError, ConfigError
from tokconv.exports.artefact import load_compressor
from tokconv.exports.integrations.pretrained import load_vlm
from tokconv.integrations import attach, merge
from tokconv.models.compressor import ResidualCompressor

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
FRESH = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
try:
    AutoModelForImageTextToText.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "tokconv_llava" in str(error), error
else:
    raise AssertionError("loaded without its compressor")
import tokconv.hf
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
with torch.inference_mode():
    save_file({"logits": model(**load_file(sys.argv[2])).logits}, sys.argv[3])
"""


def test_a_fresh_process_loads_it_only_with_its_compressor(tmp_path: Path) -> None:
    """The command writes it; plain transformers refuses it instead of leaving out the compressor."""
    tower = write_tower(tmp_path / "tower")
    compressor = write_export(tmp_path / "compressor", token_grid=4, dim=32, grid=2)
    llava, processor = make_llava(tower=tower, width=16, layers=1), make_processor(tower)
    llava.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    assert main(["merge", str(tmp_path / "llava"), str(compressor), "--out", str(tmp_path / "merged")]) == 0

    image = Image.new("RGB", (16, 16), (200, 90, 10))
    written = AutoProcessor.from_pretrained(tmp_path / "merged")
    inputs = dict(written(images=[image], text=["user : <image> what is this ?"], return_tensors="pt"))
    assert int((inputs["input_ids"] == llava.config.image_token_id).sum()) == 4
    with attach(llava, compressor), torch.inference_mode():
        expected = llava(**inputs).logits
    save_file(inputs, tmp_path / "inputs")
    paths = [str(tmp_path / name) for name in ("merged", "inputs", "outputs")]
    done = subprocess.run([sys.executable, "-c", FRESH, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The other process may have another number of threads, which changes the order of sums.
    torch.testing.assert_close(load_file(tmp_path / "outputs")["logits"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llava_next", "paligemma", "gemma3", "idefics3"])
def test_every_weight_is_loaded_and_saving_again_changes_nothing(name: str, tmp_path: Path) -> None:
    vlm, images = make_vlm(name), [[Image.new("RGB", (50, 30), (200, 90, 10))]]
    compressor = load_compressor(write_export(tmp_path / "export", TOKEN_GRID, DIM, vlm.grid))
    assert compressor.description is not None
    compressor.description["encoder"]["layer"] = vlm.layer
    names = list(vlm.model.state_dict())
    merge(vlm.model, compressor, vlm.processor, tmp_path / "merged")
    assert list(vlm.model.state_dict()) == names
    with attach(vlm.model, compressor, vlm.processor), torch.inference_mode():
        inputs = vlm.prompt(images)
        expected = vlm.model(**inputs).logits
    folder = tmp_path / "merged"
    for again in ("once", "twice"):
        model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        processor = AutoProcessor.from_pretrained(folder if again == "once" else tmp_path / "merged")
        found = Vlm(model, processor, vlm.grid, placeholder=vlm.placeholder).prompt(images)
        assert torch.equal(found["input_ids"], inputs["input_ids"])
        with torch.inference_mode():
            assert torch.equal(model.eval()(**inputs).logits, expected)
        folder = tmp_path / again
        model.save_pretrained(folder)
    half = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    dtypes = {parameter.dtype for path, parameter in half.named_parameters() if ".compressor." in path}
    assert (dtypes, half.lm_head.weight.dtype) == ({torch.float32}, torch.bfloat16)


def test_what_cannot_be_merged_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vlm = make_vlm("paligemma")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    made = ResidualCompressor(TOKEN_GRID, DIM, 3)
    with pytest.raises(CheckpointError, match="full: exists"):
        merge(vlm.model, made, vlm.processor, tmp_path / "full", layer=-1)
    with pytest.raises(ConfigError, match="does not come from an export"):
        merge(vlm.model, made, vlm.processor, tmp_path / "new", layer=-1)
    assert not (tmp_path / "new").exists()
    compressor = write_export(tmp_path / "export")
    assert main(["merge", str(tmp_path / "full"), str(compressor), "--out", str(tmp_path / "new")]) == 2
    assert "cannot be loaded as a vision-language model" in capsys.readouterr().err


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """The folder of a LLaVA, beside a compressor for it."""
    tower = write_tower(tmp_path / "tower")
    write_export(tmp_path / "compressor", token_grid=4, dim=32, grid=2)
    make_llava(tower=tower, width=16, layers=1).save_pretrained(tmp_path / "llava")
    make_processor(tower).save_pretrained(tmp_path / "llava")
    return tmp_path / "llava"


def test_damaged_weights_are_one_sentence(llava: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for damage in (lambda content: content[:-9], lambda content: b"\xff" * 8 + content[8:]):
        weights = llava / "model.safetensors"
        weights.write_bytes(damage(weights.read_bytes()))
        assert main(["merge", str(llava), str(llava.parent / "compressor"), "--out", str(llava.parent / "new")]) == 2
        text = capsys.readouterr().err
        assert re.fullmatch(r"tokconv: [^\n]+cannot be loaded as a vision-language model[^\n]+\n", text), text


def test_what_does_not_fit_is_found_before_the_model_is_loaded(
    llava: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr("tokconv.exports.integrations.pretrained.load_vlm", never)
    home = llava.parent
    for words, expected in (
        ([str(home / "compressor"), "--out", str(home / "tower")], "tower: exists; choose another place"),
        ([str(home / "missing"), "--out", str(home / "new")], "missing: not an exported compressor"),
    ):
        assert main(["merge", str(llava), *words]) == 2
        assert expected in capsys.readouterr().err


def test_a_merged_folder_is_written_whole_or_not_at_all(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = load_vlm(str(llava))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processor, "save_pretrained", full)
    before = sorted(llava.parent.iterdir())
    with pytest.raises(OSError, match="No space left"):
        merge(model, llava.parent / "compressor", processor, llava.parent / "new")
    assert sorted(llava.parent.iterdir()) == before
