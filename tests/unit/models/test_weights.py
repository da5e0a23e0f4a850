"""Model folders of others: every tensor is there and none besides, or one line says what is wrong."""

import json
import os
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make

from minillm.config.sections import Model
from minillm.data.tokenizers import train_tokenizer
from minillm.errors import UserError
from minillm.models.loading import base_model, load_model, load_tokenizer

UP = "model.layers.1.mlp.up_proj.weight"


def folder(path, family="llama", change=None, **config):
    """A saved model, with `change` made to its tensors and `config` to its config.json."""
    make(family, 0).save_pretrained(path)
    if change:
        tensors = load_file(path / "model.safetensors")
        save_file(change(tensors), path / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(written | config))
    return path


def refused(path, precision="fp32"):
    """The line that says why, without the folder in front of it."""
    with pytest.raises(UserError) as error:
        load_model(path, precision)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 700
    return line.removeprefix(f"{path}: ")


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if name not in key}


@pytest.mark.parametrize(
    ("family", "change", "config", "says"),
    [
        ("llama", without(UP), {}, f"1 missing ({UP}); config.json and weights"),
        ("llama", without("lm_head"), {}, "1 missing (lm_head.weight)"),
        (
            "llama",
            lambda tensors: {f"module.{key}": value for key, value in tensors.items()},
            {},
            "21 missing (lm_head.weight, model.embed_tokens.weight, model.layers.0.input_layernorm.weight "
            "and 18 more), 21 unknown (module.lm_head.weight, module.model.embed_tokens.weight, "
            "module.model.layers.0.input_layernorm.weight and 18 more); all names begin with 'module.'; save",
        ),
        ("llama", None, {"num_hidden_layers": 5}, "27 missing (model.layers.2.input_layernorm.weight, "),
        ("llama", None, {"num_hidden_layers": 1}, "9 unknown (model.layers.1.input_layernorm.weight, "),
        ("llama", None, {"vocab_size": 15}, "2 of another shape (lm_head.weight is 13x16 and not 15x16, "),
        ("llama", lambda tensors: tensors | {"more": torch.ones(2)}, {}, "1 unknown (more)"),
        ("gpt2", without("h.1.ln_1.bias"), {}, "1 missing (transformer.h.1.ln_1.bias)"),
    ],
)
def test_tensors_are_named_and_counted(tmp_path, family, change, config, says):
    kind = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}[family]
    line = refused(folder(tmp_path, family, change, **config))
    assert line.startswith(f"the tensors are not those of a {kind}: ") and says in line


def test_a_model_type_that_is_not_the_weights_is_refused_at_once(tmp_path):
    """Its defaults are a LLaMA of 7B, whose random weights take minutes and 28 GB."""
    began = time.monotonic()
    line = refused(folder(tmp_path, "gpt2", model_type="llama", architectures=["LlamaForCausalLM"]))
    assert "LlamaForCausalLM: 291 missing (" in line and "unknown (transformer." in line
    assert time.monotonic() - began < 30


def test_more_layers_than_tensors(tmp_path):
    line = refused(folder(tmp_path, num_hidden_layers=5_000_000))
    assert line.startswith("num_hidden_layers of config.json is 5000000, but there are only 21 tensors")


def test_whole_numbers_are_no_weights(tmp_path):
    line = refused(folder(tmp_path, change=lambda tensors: tensors | {UP: (tensors[UP] * 9).to(torch.int8)}))
    assert line.startswith(f"1 tensors hold whole numbers ({UP}: int)")
    bias = "transformer.h.0.ln_1.bias"
    path = folder(tmp_path / "gpt2", "gpt2", lambda tensors: tensors | {bias: tensors[bias].to(torch.uint8)})
    assert refused(path).startswith(f"1 tensors hold whole numbers ({bias}: uint)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    def change(tensors):
        tensors[UP][3, 5] = tensors[UP][4, 2] = value
        return tensors

    assert refused(folder(tmp_path, change=change)).startswith(
        f"2 weights are not finite numbers in float32 ({UP}); it has diverged"
    )


def test_weights_that_are_finite_only_in_another_precision(tmp_path):
    path = folder(tmp_path, change=lambda tensors: tensors | {UP: tensors[UP] * 1e6})
    load_model(path, "bf16")
    assert f"are not finite numbers in float16 ({UP})" in refused(path, "fp16")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "a quantised model (gptq), which"),
        (
            {"model_type": "theirs", "auto_map": {"AutoModelForCausalLM": "x.Y"}},
            "a model with code of its own",
        ),
        ({"model_type": "t5"}, "the model_type of config.json, 't5', is not a causal language model"),
        ({"model_type": 3}, "the model_type of config.json, 3, is not a causal"),
        ({"hidden_size": "big"}, "cannot load this model (StrictDataclassFieldValidationError: "),
    ],
)
def test_folders_that_are_no_plain_model(tmp_path, config, says):
    assert refused(folder(tmp_path, **config)).startswith(says)


def test_code_that_comes_with_a_known_model_is_not_needed(tmp_path):
    model = load_model(folder(tmp_path, auto_map={"AutoModelForCausalLM": "code.Theirs"}), "fp32")
    assert type(model).__module__.startswith("transformers.")


def test_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert refused(tmp_path).startswith("an adapter (adapter_config.json), not a model; merge it")


def test_a_cut_file_and_a_shard_that_is_missing(tmp_path):
    path = folder(tmp_path / "cut")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert refused(path).startswith("cannot load this model (SafetensorError: ")
    path = tmp_path / "shards"
    make("llama", 0).save_pretrained(path, max_shard_size="4KB")
    load_model(path, "fp32")
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.unlink()
    assert refused(path).startswith(f"{shard.name} is missing, which model.safetensors.index.json names")


class Code:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_of_a_pickle_only_tensors_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = folder(tmp_path / "model")
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    for modern in (True, False):
        torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=modern)
        assert torch.equal(load_model(path, "fp32").state_dict()[UP], tensors[UP])
    torch.save(without(UP)(tensors), path / "pytorch_model.bin")
    assert f"1 missing ({UP})" in refused(path)
    torch.save(tensors | {"x": Code()}, path / "pytorch_model.bin")
    line = refused(path)
    assert line.startswith("pytorch_model.bin is damaged, or a pickle that holds more than tensors")
    assert not (tmp_path / "pwned").exists()


def test_what_old_checkpoints_hold_besides_weights_is_no_fault(tmp_path):
    """GPT-2 as first published: names of the backbone, masks of each block, and no head of its own."""

    def old(tensors):
        masks = {"h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8)}
        masks |= {"h.1.attn.masked_bias": torch.tensor(-1e4)}
        return {key.removeprefix("transformer."): value for key, value in tensors.items()} | masks

    expected, ids = make("gpt2", 0), torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(
            load_model(folder(tmp_path, "gpt2", old), "fp32")(ids).logits, expected(ids).logits
        )


def test_a_tied_head_that_is_stored_twice_is_no_fault(tmp_path):
    def twice(tensors):
        return tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}

    model = load_model(folder(tmp_path, "gpt2", twice), "fp32")
    assert torch.equal(model.lm_head.weight, make("gpt2", 0).transformer.wte.weight)


def test_a_hub_model_ends_in_one_line(tmp_path, monkeypatch):
    tokenizer = train_tokenizer(["some text"], 260)
    spec = Model("hub", "t", path="owner/name")
    for error in (ImportError("no package\nof this name"), RuntimeError("broken"), OSError("no network")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("minillm.models.weights.cached_file", fail)
        with pytest.raises(UserError) as found:
            base_model(spec, tokenizer, 0, None)
        assert str(found.value).startswith("models.path: 'owner/name' of the hub: cannot load this model (")
        assert "\n" not in str(found.value)


def test_a_hub_model_with_a_tensor_missing_is_refused(tmp_path, monkeypatch):
    path = folder(tmp_path / "snapshots" / ("0" * 40), change=without(UP))
    monkeypatch.setattr(
        "minillm.models.weights.cached_file",
        lambda _, name, **__: str(path / name) if (path / name).is_file() else None,
    )
    spec = Model("hub", "t", path=str(path))
    with pytest.raises(UserError, match=r"of the hub: the tensors are not .* 1 missing \(model.layers.1"):
        base_model(spec, train_tokenizer(["some text"], 260), 0, None)


GGUF = {
    **{"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"},
    **{"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"},
    **{"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"},
    **{"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
}


def write_gguf(path, leave_out=""):
    """The tiny LLaMA as a GGUF file in float32."""
    import gguf

    model, writer = make("llama", 0), gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(2)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(13)])
    for name, values in model.state_dict().items():
        part = name.removesuffix(".weight")
        if part.startswith("model.layers."):
            number, part = part.removeprefix("model.layers.").split(".", 1)
            theirs = f"blk.{number}.{GGUF[part]}.weight"
        else:
            theirs = f"{GGUF[part]}.weight"
        if theirs != leave_out:
            writer.add_tensor(theirs, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_that_lacks_a_tensor_or_is_cut(tmp_path):
    tokenizer = train_tokenizer(["some text"], 260)
    path = tmp_path / "model.gguf"
    spec = Model("gguf", "t", path=str(path))
    write_gguf(path)
    # Only the vocabulary is refused: all weights are there.
    with pytest.raises(UserError, match="knows 13 tokens and its tokenizer 2"):
        base_model(spec, tokenizer, 0, None)
    write_gguf(path, leave_out="blk.1.ffn_up.weight")
    with pytest.raises(UserError, match=rf"^{path}: the tensors are .* 1 missing \({UP}\)"):
        base_model(spec, tokenizer, 0, None)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=f"^{path}: cannot load this model .[^\n]*$"):
        base_model(spec, tokenizer, 0, None)


def test_an_unknown_key_of_an_architecture_is_refused_with_a_hint():
    tokenizer = train_tokenizer(["some text"], 262)
    shape = {"model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 16}
    for key, says in (("num_hidden_layrs", "did you mean num_hidden_layers"), ("zzz", "see its class")):
        spec = Model("scratch", "t", architecture=shape | {key: 3})
        with pytest.raises(
            UserError, match=f"^models.architecture.{key}: no such key of a qwen2 model; {says}"
        ):
            base_model(spec, tokenizer, 0, None)
    # No field of its configuration, but its attention reads it; and the old name of rope_parameters.
    spec = Model("scratch", "t", architecture=shape | {"head_dim": 4, "rope_theta": 100.0})
    model = base_model(spec, tokenizer, 0, None)
    assert model.base_model.layers[0].self_attn.head_dim == 4


def test_a_damaged_tokenizer_of_ours_is_one_line(tmp_path):
    for text in ("{}", "{broken", "[]", "\x00"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match="cannot load this tokenizer"):
            load_tokenizer(tmp_path)
