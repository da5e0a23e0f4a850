"""What the rules ask for: the one seam that knows wildcards and paths."""
