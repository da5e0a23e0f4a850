"""Sampling from one or two models, and the stages that only sample."""
