"""The plan of a sweep: what it will take, before it runs."""
