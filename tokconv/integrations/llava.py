"""`attach` under its older name, from the time when LLaVA was the only model: see `tokconv.integrations`."""

from tokconv.integrations import Attachment, attach

__all__ = ["Attachment", "attach"]
