"""An exported compressor for transformers: importing this module registers its classes with `AutoModel`.

    import tokconv.hf
    from transformers import AutoModel

    model = AutoModel.from_pretrained("runs/sweeps/demo-001/champions/grid-06/fidelity")
    compressed = model(tokens).last_hidden_state    # [batch, 576, 64] to [batch, 36, 64]

`tokconv.load_compressor` reads the same folder, and also what `save_pretrained` writes. No code in the folder is run:
`trust_remote_code` is not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from tokconv.exports.artefact import MODEL_TYPE, OWN_KEYS, build_described, check_format, save_compressor
from tokconv.models.registry import build_compressor
from tokconv.models.windows import Windows


class TokconvConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """config.json of an export.

    Attributes:
        description: the entries that belong to tokconv: networks, encoder, figures, baselines.
    """

    model_type = MODEL_TYPE

    def __init__(self, **values: Any) -> None:
        # Kept apart because names such as `decoder` and `encoder` mean something else in transformers.
        description = values.pop("description", None) or {}
        own = {name: values.pop(name) for name in OWN_KEYS if name in values}
        super().__init__(**values)
        self.description: dict[str, Any] = {**description, **own}

    def to_dict(self) -> dict[str, Any]:
        """Return the flat dictionary that config.json holds."""
        values = super().to_dict()
        return {**values, **values.pop("description")}


class TokconvModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A compressor: for patch tokens [B, N, C] without CLS, `model(tokens).last_hidden_state` is [B, k*k, C].

    Raises:
        CheckpointError: (on loading) this tokconv cannot read the config.json.

    Example:
        >>> model = AutoModel.from_pretrained("runs/sweeps/demo-001/champions/grid-06/fidelity")    # doctest: +SKIP
        >>> model(tokens).last_hidden_state.shape                                          # doctest: +SKIP
        torch.Size([1, 36, 64])
    """

    config_class = TokconvConfig
    base_model_prefix = "compressor"
    main_input_name = "tokens"

    def __init__(self, config: TokconvConfig) -> None:
        super().__init__(config)
        check_format(config.description, config.name_or_path)
        # On the CPU, although transformers builds models on the meta device: the windows are computed, not loaded.
        with torch.device("cpu"):
            self.compressor = build_described(build_compressor, "compressor", config.description, config.name_or_path)
        self.compressor.description = config.description
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, tokens: Tensor) -> BaseModelOutput:
        """Compress tokens [B, N, C] to [B, k*k, C], in the same units."""
        return BaseModelOutput(last_hidden_state=self.compressor(tokens))

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:  # type: ignore[override]
        """Write a folder that both `AutoModel` and `tokconv.load_compressor` read; without a decoder.

        Args:
            options: `state_dict` is written in place of the model's own; others of transformers change nothing.

        Raises:
            CheckpointError: the folder holds something else.
        """
        if options.get("is_main_process", True):
            state, own = options.get("state_dict") or self.state_dict(), f"{self.base_model_prefix}."
            weights = {name.removeprefix(own): tensor for name, tensor in state.items()}
            save_compressor(self.compressor, Path(save_directory), weights)

    def _init_weights(self, module: Any) -> None:
        """Compute the windows, which no file holds and transformers therefore leaves empty; all else is loaded."""
        if isinstance(module, Windows):
            computed = Windows(module.token_grid, module.output_grid)
            for name, buffer in computed.named_buffers():
                getattr(module, name).copy_(buffer)


AutoConfig.register(MODEL_TYPE, TokconvConfig)
AutoModel.register(TokconvConfig, TokconvModel)
