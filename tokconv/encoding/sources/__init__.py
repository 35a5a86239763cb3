"""Where images come from, one kind of source per module; `tokconv.encoding.images` opens the configured one."""
