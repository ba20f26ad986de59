"""Where two runs part: `viewer diff`."""
