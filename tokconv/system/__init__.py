"""Disk, URLs, terminal, devices and the start of Ray; nothing here knows about tokens."""
