"""The log: its format, its writer's half and its readers' half. Imports no torch: the viewer uses it too."""
