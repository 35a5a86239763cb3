"""Where images come from, a kind of source a module; `tokconv.encoding.images.open_source` opens the configured one."""
