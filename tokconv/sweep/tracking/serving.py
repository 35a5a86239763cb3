"""The registered model as MLflow loads it: a model from code around an exported compressor, nothing pickled.

MLflow copies this file into the model and runs it when the model is loaded, so it may import only what is installed
there: tokconv and numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from tokconv import load_compressor


class CompressorModel(PythonModel):
    """`predict`: float32 patch tokens [B, N, C] (no CLS) -> compressed tokens [B, k*k, C]."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the exported compressor that lies beside the model. Raises CheckpointError when it is damaged."""
        self._compressor = load_compressor(context.artifacts["model_dir"])

    # MLflow reads the hint of `model_input`, and warns whoever loads the model about most others and about none.
    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        # A copy, since torch warns about arrays that it could write through to the caller's read-only memory.
        tokens_BNC = torch.from_numpy(np.array(model_input, dtype=np.float32))
        with torch.inference_mode():
            compressed: np.ndarray = self._compressor(tokens_BNC).numpy()
        return compressed


set_model(CompressorModel())
