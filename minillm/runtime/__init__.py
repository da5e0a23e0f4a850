"""Processes, the engine, checkpoints, provenance."""
