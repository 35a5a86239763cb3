"""The frozen vision towers: where their files are, what the files describe, and the tower itself."""
