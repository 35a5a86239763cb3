"""Embeddings of images for vLLM: `load` a LLaVA's visual part with a compressor, and `embed` images with it."""

from tokconv.exports.integrations.vllm import embed, load

__all__ = ["embed", "load"]
