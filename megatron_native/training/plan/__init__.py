"""A run's layout worked out with no devices: what every rank holds, how fast it may go, whether it fits."""
