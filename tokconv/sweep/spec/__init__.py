"""What a sweep is: the spec, and the YAML file it is read from."""
