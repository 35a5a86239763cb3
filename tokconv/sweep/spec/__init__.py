"""The spec of a sweep, and the YAML file that it is read from."""
