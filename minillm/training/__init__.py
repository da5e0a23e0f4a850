"""Supervised and on-policy training."""
