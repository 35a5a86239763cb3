"""An exported compressor for transformers: importing this module registers its classes with `AutoModel`.

import tokconv.hf
from transformers import AutoModel

model = AutoModel.from_pretrained("runs/sweeps/demo-001/champions/grid-06/fidelity")
compressed = model(tokens).last_hidden_state    # [batch, 576, 64] to [batch, 36, 64]
"""

from tokconv.exports.huggingface import TokconvConfig, TokconvModel

__all__ = ["TokconvConfig", "TokconvModel"]
