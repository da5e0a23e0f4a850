"""Loading models, the output head, the tiled loss."""
