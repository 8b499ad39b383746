"""The Arabic data report: what became of every record of a corpus run, as one self-contained HTML file and as JSON."""
