"""Rows to bounded numbers: however long a run, what is kept of it has the same size, and every extreme in it."""
