"""Tables and figures of finished metrics; imports neither torch nor transformers."""
