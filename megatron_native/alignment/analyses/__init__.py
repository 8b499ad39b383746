"""What rewriting did to the texts: pairs read from a rewriting or from files, and a module for each question about them."""
