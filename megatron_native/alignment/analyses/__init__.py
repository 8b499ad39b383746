"""What rewriting did to the texts: pairs read from a rewriting or from files, and one module for each question asked of them."""
