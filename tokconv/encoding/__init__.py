"""Images and frozen vision towers into a token store."""
