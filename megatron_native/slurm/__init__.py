"""Runs as Slurm jobs: what a site is like, the scripts of a run, the checks before and after it. Imports no torch."""
