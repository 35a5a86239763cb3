"""tokconv: learned compression of CLIP patch tokens.

Importing it imports neither torch nor anything else heavy; the names below do when they are first used.

    load_compressor(path)                   an exported compressor as a torch module
    load_dynamic(champions, target_fvu=F)   the compressors of a sweep: per image the smallest grid that is good enough
    load_ragged(path)                       tokens of images with different grids, from a file
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["__version__", "load_compressor", "load_dynamic", "load_ragged"]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from tokconv.exports.artefact import load_compressor
    from tokconv.exports.dynamic.compressor import load_dynamic
    from tokconv.exports.dynamic.ragged import load_ragged


def __getattr__(name: str) -> Any:
    if name == "load_compressor":
        from tokconv.exports.artefact import load_compressor

        return load_compressor
    if name == "load_dynamic":
        from tokconv.exports.dynamic.compressor import load_dynamic

        return load_dynamic
    if name == "load_ragged":
        from tokconv.exports.dynamic.ragged import load_ragged

        return load_ragged
    raise AttributeError(f"module 'tokconv' has no attribute {name!r}")
