"""The frozen vision towers: where their files are, what they say, and the tower itself."""
