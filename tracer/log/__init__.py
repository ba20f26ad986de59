"""The log: its format, and what writes and reads it. Nothing here imports torch: the viewer uses it, too."""
