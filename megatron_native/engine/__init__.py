"""Where the tasks of a stage run: local processes, or a Ray cluster."""
