"""Exported compressors and merged vision-language models for transformers: importing this module registers both.

import tokconv.hf
from transformers import AutoModel, AutoModelForImageTextToText

model = AutoModel.from_pretrained("runs/sweeps/demo-001/champions/grid-06/fidelity")
compressed = model(tokens).last_hidden_state    # [batch, 576, 64] to [batch, 36, 64]
vlm = AutoModelForImageTextToText.from_pretrained("merged")     # a folder that `tokconv merge` wrote
"""

from tokconv.exports.huggingface import TokconvConfig, TokconvModel
from tokconv.exports.integrations.merged import register

__all__ = ["TokconvConfig", "TokconvModel"]

register()
