"""Seed pairs: passages chosen from a corpus, and what an expert makes of them under the code of conduct."""
