"""What a sweep has done: the event log, its files, and the process that drives it."""
