"""The record of a sweep: its event log, its files, and the process that drives it."""
