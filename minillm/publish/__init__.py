"""Tables and figures from finished metrics; imports neither torch nor transformers."""
