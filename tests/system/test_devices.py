"""In which precision a device computes."""

from __future__ import annotations

import pytest
import torch

from tokconv.system.devices import fast_dtype, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_is_half_precision_on_a_gpu_alone() -> None:
    assert [resolve_dtype("auto", device) for device in (CPU, CUDA)] == [torch.float32, torch.bfloat16]
    for device in (CPU, CUDA):
        assert resolve_dtype("float32", device) == torch.float32
        assert resolve_dtype("bfloat16", device) == torch.bfloat16


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [("avx512_bf16", torch.bfloat16), ("bf16", torch.bfloat16), ("amx_fp16", torch.float16), ("avx2", None)],
)
def test_half_precision_stays_where_the_processor_multiplies_it(
    capability: str, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", capability: True})
    for wanted in (torch.bfloat16, torch.float16):
        assert fast_dtype(wanted, CPU) == (wanted if wanted == dtype else torch.float32)
        assert fast_dtype(wanted, CUDA) == wanted
    for wide in (torch.float32, torch.float64):
        assert fast_dtype(wide, CPU) == wide


def test_this_processor_says_what_it_multiplies() -> None:
    assert "architecture" in torch.cpu.get_capabilities()
    assert fast_dtype(torch.bfloat16, CPU) in (torch.bfloat16, torch.float32)
