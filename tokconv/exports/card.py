"""The model card of an export, README.md: what it compresses, its figures and the baselines', how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokconv.errors import printable
from tokconv.evaluation.baselines.registry import title_of
from tokconv.evaluation.figure import CARD
from tokconv.evaluation.figures import VLM_KL, shown_in
from tokconv.evaluation.purposes import FIDELITY, PLUG_IN, PURPOSES


def model_card(description: Mapping[str, Any], place: Path) -> str:
    """Return the card in Markdown, with the header that the Hugging Face hub reads.

    Args:
        description: the content of config.json.
        place: the folder of the card; shown relative to the working directory if it is below it.
    """
    sizes, figures, baselines = description["compressor"], description["figures"], description["baselines"]
    tokens, cells, dim = sizes["token_grid"] ** 2, sizes["output_grid_size"] ** 2, sizes["dim"]
    columns = [("this compressor", figures), *((title_of(name), values) for name, values in baselines.items())]
    rows = [
        [f"{figure.explanation} (`{figure.name}`)", *(_cell(values.get(figure.name)) for _, values in columns)]
        for figure in shown_in(CARD)
        if figure.name in figures
    ]
    head, rule = ["held-out figure", *(title for title, _ in columns)], ["---", *["---:"] * len(columns)]
    formats = [f"- `{one['file']}`: {_format_line(name, one)}" for name, one in description.get("formats", {}).items()]
    evidence = description.get("evidence", {}).get("summary", "one run, not confirmed over seeds")
    points = "\n".join([f"- Evidence: {evidence}", *formats])
    table = "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
    return f"""---
library_name: tokconv
# The weights are yours, and the encoder and the images may bind you; tokconv itself is under the MIT license.
license: unknown
tags: [clip, vision-language, token-compression]
---

# CLIP token compressor, {tokens} to {cells} tokens ({tokens / cells:.3g}x)

Compresses [batch, {tokens}, {dim}] patch tokens (no CLS) to [batch, {cells}, {dim}].

- Encoder: `{printable(description["encoder"]["name"])}`, hidden layer {description["encoder"]["layer"]}
- Token store: `{description["store_fingerprint"]}`, evaluation protocol {description["protocol"]}
{points}

{table}

```python
import tokconv

compressor = tokconv.load_compressor({_shown(place)!r})  # this folder, where it was written
compressed = compressor(tokens)  # [batch, {tokens}, {dim}] to [batch, {cells}, {dim}]
```
"""


def _shown(place: Path) -> str:
    whole, here = place.absolute(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def compared_line(description: Mapping[str, Any]) -> str:
    """Return one line: which epoch an export is, and whether it beats the best closed form that its run measured.

    Args:
        description: the content of config.json.
    """
    purpose = PURPOSES[FIDELITY]
    figures, baselines = description["figures"], description["baselines"]
    # A run that a vision-language model taught has its figure of the baselines, too.
    own = PLUG_IN if any(VLM_KL in row for row in baselines.values()) else FIDELITY
    wanted = description.get("evidence", {}).get("purpose", own)
    if wanted in PURPOSES and PURPOSES[wanted].figure(figures) is not None:
        purpose = PURPOSES[wanted]
    epochs = (
        f"epoch {figures['epoch']:.0f} of {figures['epochs']:.0f}, " if {"epoch", "epochs"} <= figures.keys() else ""
    )
    return f"{epochs}{purpose.compared(figures, baselines)}"


def _format_line(name: str, measured: Mapping[str, Any]) -> str:
    what = {"pt2": "torch.export", "onnx": f"ONNX, opset {measured.get('opset')}"}[name]
    error = measured["max_error"]
    same = "bit-identical" if error == 0 else f"differs by at most {error:.1e} of a token's deviation"
    return f"{what}, float32, any batch size; {same} on 4 random images"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    # Four decimals cannot tell a discrepancy of 0.00001 from 0, or an alignment of 0.99996 from 1.
    return f"{value:.6f}" if abs(value) < 0.005 or 0.9995 < value < 1 else f"{value:.4f}"
