"""The ladder of checks that a kind of GPU has to pass before it trains at scale, and the record of it."""
