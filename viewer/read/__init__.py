"""Files to rows, each once: a run's folder is followed, alone or among others, and its findings with it."""
