"""From sources to rows and tokens."""
