"""What a sweep takes, before it runs."""
