"""Compressors inside the models of other libraries, and what their servers take."""

from tokconv.exports.integrations.attach import attach
from tokconv.exports.integrations.attachment import Attachment
from tokconv.exports.integrations.merged import merge

__all__ = ["Attachment", "attach", "merge"]
