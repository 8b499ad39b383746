"""Training after pre-training: conversations to masked datasets, for the same trainer."""
