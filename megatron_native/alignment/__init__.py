"""See docs/concepts/code-of-conduct.md."""
