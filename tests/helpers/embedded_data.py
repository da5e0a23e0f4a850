"""The settings of stage `data` for a few rows of the embedded corpus."""

EMBEDDED = {"source": "embedded", "split": "dev", "rows": 4}
DATA = {
    "stage": "data",
    "tokenizer": {"source": "train", "vocabulary": 300},
    "train": {"source": "embedded", "split": "train", "rows": 16},
    "dev": EMBEDDED,
    "corpus": {"source": "embedded", "rows": 20},
    "template": "plain",
    "max_prompt": 96,
    "max_response": 16,
    "corpus_length": 32,
    "seed": 0,
}
