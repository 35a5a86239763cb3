"""tokconv: learned compression of CLIP patch tokens.

Importing it imports neither torch nor anything else heavy; the names below do when they are first used.

    load_compressor(path)    an exported compressor as a torch module
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["__version__", "load_compressor"]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from tokconv.export import load_compressor


def __getattr__(name: str) -> Any:
    if name == "load_compressor":
        from tokconv.export import load_compressor

        return load_compressor
    raise AttributeError(f"module 'tokconv' has no attribute {name!r}")
