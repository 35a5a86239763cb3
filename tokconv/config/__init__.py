"""Every key of the config with its default, meaning and bounds, and the overrides that set it."""
