"""gradwatch's watching side: another process that follows a run's log and draws it as rows arrive. Imports no torch."""
