"""Models as files and their logits: padding, pruning, padded vocabularies."""

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, make

from minillm.config.sections import Model, Sampling
from minillm.data.batching import collate
from minillm.data.tokenizers import train_tokenizer
from minillm.errors import UserError
from minillm.models.head import response_logits, response_tokens
from minillm.models.loading import (
    base_model,
    check_same_tokenizer,
    check_vocabulary,
    load_model,
    load_tokenizer,
    prune,
)
from minillm.sampling.sample import sample

EXAMPLES = [
    (np.array(prompt, dtype=np.int32), np.array(response, dtype=np.int32))
    for prompt, response in (([3, 4, 5, 6], [1, 0]), ([7], [2, 3, 4, 0]), ([1, 2], [0]))
]


@pytest.fixture(params=FAMILIES)
def model(request):
    return make(request.param, seed=0, layers=4)


def alone(model, vocabulary):
    """Logits of each response token from an unpadded forward pass of its row."""
    rows = []
    for prompt, response in EXAMPLES:
        logits = model(torch.from_numpy(np.concatenate([prompt, response])[None].astype(np.int64))).logits[0]
        rows.append(logits[len(prompt) - 1 : -1, :vocabulary])
    return torch.cat(rows)


def test_logits_do_not_depend_on_padding(model):
    batch = collate(EXAMPLES, pad=0)  # which is an id that responses hold, as the EOS is
    with torch.no_grad():
        found = response_logits(model, batch, 11)
        assert found.shape == (7, 11)
        assert torch.allclose(found, alone(model, 11), atol=1e-5)
    assert response_tokens(batch).tolist() == [1, 0, 2, 3, 4, 0, 0]


def test_a_pruned_model_is_the_chosen_layers_with_a_cache_that_fits(model):
    shared = {"seed": 1, "step": 0, "ends": [0], "pad": 0, "vocabulary": 13}
    before = sum(p.numel() for p in model.parameters())
    pruned = prune(model, (0, 3))
    assert pruned.config.num_hidden_layers == 2 and sum(p.numel() for p in pruned.parameters()) < before
    prompt = EXAMPLES[0][0]
    greedy = sample(pruned, [prompt], [0], Sampling(top_k=1, max_tokens=6), **shared)[0].tokens.tolist()
    ids = prompt.tolist()
    for token in greedy:  # the same without a cache
        with torch.no_grad():
            assert pruned(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item() == token
        ids.append(token)


def test_a_pruned_model_survives_saving(model, tmp_path):
    pruned = prune(model, (1, 2))
    pruned.save_pretrained(tmp_path)
    again = load_model(tmp_path, "fp32")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, pruned(ids).logits, atol=1e-6)


def test_a_layer_that_does_not_exist(model):
    with pytest.raises(UserError, match="layer 4 does not exist, the parent has 0 to 3"):
        prune(model, (0, 4))
    with pytest.raises(UserError, match="names a layer twice"):
        prune(model, (1, 1))


def test_a_model_smaller_than_its_tokenizer_is_refused_and_a_padded_one_is_not(model):
    tokenizer = train_tokenizer(["some text"], 260)
    with pytest.raises(
        UserError, match="knows 13 tokens and its tokenizer 25[0-9]|knows 13 tokens and its tokenizer 260"
    ):
        check_vocabulary(model, tokenizer, "here")
    model.resize_token_embeddings(300)
    check_vocabulary(model, tokenizer, "here")


def test_tokenizers_are_compared_token_by_token(tmp_path):
    for name, text in (
        ("a", "one text one text"),
        ("b", "another thing another thing"),
        ("c", "one text one text"),
    ):
        train_tokenizer([text], 262).save_pretrained(tmp_path / name)
    assert check_same_tokenizer(tmp_path / "a", tmp_path / "c") == 262
    with pytest.raises(UserError, match="does not match"):
        check_same_tokenizer(tmp_path / "a", tmp_path / "b")


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(UserError, match="no model here"):
        load_model(tmp_path, "fp32")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="without weights"):
        load_model(tmp_path, "fp32")
    with pytest.raises(UserError, match="no tokenizer here"):
        load_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot load this model"):
        load_model(tmp_path, "fp32")


def test_an_architecture_that_cannot_be(tmp_path):
    tokenizer = train_tokenizer(["some text"], 262)
    for architecture in ({"model_type": "gpt2", "n_embd": 10, "n_head": 3}, {"model_type": "no such thing"}):
        spec = Model("scratch", "t", architecture=architecture)
        with pytest.raises(UserError, match="^models.architecture: .{1,210}$"):
            base_model(spec, tokenizer, 0, None)
