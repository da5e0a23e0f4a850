"""MiniLLM: distillation of large language models by on-policy reverse KL (arXiv 2306.08543), as a reproducible pipeline."""

__version__ = "0.1.0"
