"""The command line: arguments, and what the commands do."""
