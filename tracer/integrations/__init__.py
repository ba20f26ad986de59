"""The training frameworks: a file each, and in ``shell`` what they share. A framework is imported in its file only."""
