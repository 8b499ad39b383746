"""The report on a rewriting: figures gathered in one pass, and one HTML page with every pair that was sampled."""
