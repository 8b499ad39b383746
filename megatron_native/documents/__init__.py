"""Documents as files: what teams have on disk in, as records cut into parts; zstd JSONL or Parquet out."""
