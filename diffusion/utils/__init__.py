"""Files, paths, processes, progress."""
