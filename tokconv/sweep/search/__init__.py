"""The search: which trials run, and which of them are stopped early."""
