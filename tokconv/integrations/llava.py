"""A LLaVA whose language model reads k * k compressed visual tokens instead of all of them."""

from tokconv.exports.integrations.llava import Attachment, attach

__all__ = ["Attachment", "attach"]
