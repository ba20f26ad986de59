"""A snapshot to a figure of matplotlib."""
