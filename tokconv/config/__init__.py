"""Every key of the config: its default, its meaning and its bounds, and the overrides that set it."""
