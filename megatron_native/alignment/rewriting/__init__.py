"""See docs/rewriting.md."""
