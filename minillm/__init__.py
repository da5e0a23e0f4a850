"""MiniLLM, a reproducible pipeline: distillation of large language models by on-policy reverse KL.

The paper is arXiv 2306.08543.  The names in `__all__` are public (docs/package.md): `from minillm import
reverse_kl, sample`.  Each is imported on first use, so `import minillm` imports neither torch nor any other
module of the package.
"""

import importlib

__version__ = "0.1.0"

# Where each public name is defined.  Text, not import statements: the workflow makes every file that a stage
# imports an input of that stage, so imports here would make the whole package an input of every stage.
_PUBLIC = {
    "minillm.objectives": (
        "alpha_beta",
        "forward_kl",
        "importance_weights",
        "jensen_shannon",
        "masked_mean",
        "policy_gradient_loss",
        "returns",
        "reverse_kl",
        "sequence_weights",
        "single_step_loss",
        "skew_forward_kl",
        "skew_reverse_kl",
        "squared_log_ratio",
        "token_rewards",
        "token_wise_kl",
        "total_variation",
        "whiten",
    ),
    "minillm.token_sets": ("on_set",),
    "minillm.config.sections": ("Sampling",),
    "minillm.sampling.sample": ("Mixture", "Record", "Response", "sample"),
    "minillm.data.batching": ("Batch", "collate"),
    "minillm.data.tokenizers": ("vocabulary_size",),
    "minillm.models.loading": ("load_model", "load_tokenizer", "save_model", "special_tokens"),
    "minillm.models.head": (
        "head_of",
        "logits_by_tile",
        "response_hidden",
        "response_loss",
        "response_tokens",
        "response_values",
        "token_logprobs",
    ),
    "minillm.models.tiled_loss": ("Head", "tiled_loss", "tiled_values"),
    "minillm.scores": ("exact_match", "rouge_l"),
    "minillm.counts": ("distinct", "repetition"),
    "minillm.evaluation.calibration": ("ece",),
    "minillm.evaluation.statistics": ("bootstrap_mean", "holm", "mean_and_error", "paired_bootstrap"),
    "minillm.errors": ("UserError",),
}
# Names that would say too little outside their module.
_NAME_IN_MODULE = {"tiled_loss": "loss", "tiled_values": "values"}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    """A public name, imported from its module on first access (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'minillm' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULE_OF[name]), _NAME_IN_MODULE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
