"""What people see of a sweep: progress, tables, plots, the page."""
