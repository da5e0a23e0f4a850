"""What is computed from finished responses."""
