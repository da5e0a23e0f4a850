"""`minillm layers`: the order in which layers go, by the loss of the model without them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from minillm.cli import main
from minillm.data.tokenizers import train_tokenizer
from minillm.evaluation.left_out import order
from minillm.models.loading import decoder_blocks, only_layers, prune

# Prompt and reference, of unequal lengths.
EXAMPLES = [
    (np.array([1, 2, 3], dtype=np.int32), np.array([4, 5], dtype=np.int32)),
    (np.array([7], dtype=np.int32), np.array([8, 9, 10, 11, 2], dtype=np.int32)),
]
HOW = {"vocabulary": 13, "pad": 0, "batch": 2}


def llama(layers: int = 4, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=13, num_hidden_layers=layers, initializer_range=0.4, **sizes)
    return LlamaForCausalLM(config).eval()


def nats(model: PreTrainedModel) -> float:
    """Nats per reference token, row by row without padding."""
    sums, count = 0.0, 0
    for prompt, reference in EXAMPLES:
        ids = torch.tensor([*prompt.tolist(), *reference.tolist()])
        with torch.no_grad():
            logs = model(ids[None]).logits[0].double().log_softmax(-1)
        steps = range(len(prompt), len(ids))
        sums -= sum(float(logs[t - 1, ids[t]]) for t in steps)
        count += len(reference)
    return sums / count


def test_each_time_the_layer_goes_without_which_the_loss_is_lowest() -> None:
    found = list(order(llama(), EXAMPLES, 2, **HOW))
    assert [len(left) for _, _, left in found] == [4, 3, 2] and found[0][0] is None
    for layer, value, left in found:
        assert value == pytest.approx(nats(prune(llama(), left)), abs=1e-5) and layer not in left
    for (_, _, before), (_, value, _) in itertools.pairwise(found):
        others = [nats(prune(llama(), tuple(i for i in before if i != gone))) for gone in before]
        assert value == pytest.approx(min(others), abs=1e-5)


def test_a_layer_that_does_nothing_costs_nothing() -> None:
    model = llama()
    block = decoder_blocks(model)[2]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    whole, first = list(order(model, EXAMPLES, 3, **HOW))
    with only_layers(model, (0, 1, 3)):
        assert nats(model) == pytest.approx(whole[1], abs=1e-6)
    assert first[1] <= whole[1] + 1e-6


def test_the_model_is_what_it_was() -> None:
    model = llama()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        before = model(ids).logits
    with pytest.raises(KeyError), only_layers(model, (3, 1)):
        assert model.config.num_hidden_layers == 2
        raise KeyError
    assert model.config.num_hidden_layers == 4
    assert [block.self_attn.layer_idx for block in decoder_blocks(model)] == [0, 1, 2, 3]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before) and model.generate(ids, max_new_tokens=3).shape[1] > 4


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_tokenizer(["some text to read"], 260)
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=3, hidden_size=16, intermediate_size=32,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {
            "id": i,
            "dataset": "d",
            "prompt": "some",
            "prompt_tokens": tokenizer.encode("some"),
            "references": [" text"],
        }
        for i in range(3)
    ]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [str(tmp_path / "model"), "--test", str(tmp_path / "dev.jsonl")]
    assert main(["layers", *paths, "--keep", "2", "--rows", "2"]) == 0
    # DeepSpeed may say first which accelerator it sees.
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("[20")]
    assert said[0].startswith("2 rows of ") and said[2].split()[0] == "none" and len(said) == 5
    assert len(json.loads(said[-1].removeprefix("layers: "))) == 2
    assert main(["layers", *paths, "--keep", "3"]) == 2
    assert "--keep 3: the model has 3 layers; keep 1 to 2" in capsys.readouterr().err
