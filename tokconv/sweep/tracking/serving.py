"""The registered model as MLflow loads it: code around an exported compressor, without any pickle.

MLflow copies this file into the model and runs it when the model is loaded, so it may import only what is installed
there: tokconv, with torch and numpy, and MLflow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from tokconv import load_compressor


class CompressorModel(PythonModel):
    """A model whose `predict` turns float32 patch tokens [B, N, C] (no CLS) into compressed tokens [B, k*k, C]."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the exported compressor that comes with the model. Raises CheckpointError if it is damaged."""
        self._compressor = load_compressor(context.artifacts["model_dir"])

    # MLflow reads the type hint of `model_input`; most other hints, or none, make it warn whoever loads the model.
    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        # A copy: torch warns about read-only arrays, since writes to the tensor would reach the caller's memory.
        tokens_BNC = torch.from_numpy(np.array(model_input, dtype=np.float32))
        with torch.inference_mode():
            compressed: np.ndarray = self._compressor(tokens_BNC).numpy()
        return compressed


set_model(CompressorModel())
