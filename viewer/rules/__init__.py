"""Numbers to findings: what is wrong with a run, since when, and what people usually try."""
