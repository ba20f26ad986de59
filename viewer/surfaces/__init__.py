"""Where people look: a window, a page, a notebook, files, the terminal, and the table of `viewer check`."""
