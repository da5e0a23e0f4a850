"""What a plan knows of a model before it is here: sizes from shapes, rows from the configuration."""

import json
import re

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from minillm.config import layout
from minillm.errors import UserError
from minillm.fits.rows import lengths_of, rows_of
from minillm.fits.sizes import KEPT, shape_of, size_of, text_of
from minillm.models.loading import decoder_blocks
from minillm.plan import configuration
from minillm.publish.item_results import parameters

# As the models' cards and papers count them.
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neo-2.7b": 2_651_307_520,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "smollm2-135m-base": 134_515_008,
    "smollm2-360m-base": 361_821_120,
    "smollm2-1.7b-base": 1_711_376_384,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
}
PAPER = configuration([])


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_model(name):
    assert size_of(shape_of(PAPER, name)).parameters == PUBLISHED[name]


def test_every_model_of_the_catalogue_has_a_shape():
    """And its size in tables is that of the shape, as far as it is rounded there."""
    assert set(PAPER.shapes) == set(PAPER.models)
    for name in PAPER.models:
        if name.endswith(("-instruct", "-it")):
            base = re.sub("-(instruct|it)$", "", name)
            assert PAPER.shapes[name] == PAPER.shapes[base if base in PAPER.shapes else f"{base}-base"]
        else:
            assert PUBLISHED[name] == pytest.approx(parameters(PAPER.models[name].size), rel=0.31)


@pytest.mark.parametrize("name", ["gpt2", "opt-1.3b", "llama-7b", "gpt-j-6b", "gpt-neo-2.7b"])
def test_sizes_are_those_of_the_whole_model_on_the_meta_device(name):
    size = size_of(shape_of(PAPER, name))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**PAPER.shapes[name]))
    weights, blocks = list(model.parameters()), decoder_blocks(model)
    assert size.parameters == sum(p.numel() for p in weights)
    assert size.decaying == sum(p.numel() for p in weights if p.ndim > 1)
    assert size.matrices == sum(p.numel() for p in blocks.parameters() if p.ndim > 1)
    assert (size.vocabulary, size.width) == tuple(model.get_output_embeddings().weight.shape)
    assert size.layers == len(blocks)
    # Keys and values of one token, from the model's own cache.
    cache = 2 * size.layers * size.attention
    assert size.cache == cache, "none of these families shares keys between heads"


def test_heads_that_share_keys_cache_less():
    shape = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    size = size_of(text_of(shape))
    assert (size.attention, size.cache) == (64, 2 * 3 * 2 * 16)


@pytest.fixture
def demo():
    return configuration(["config/demo.yaml"])


def test_a_model_from_scratch_has_its_shape_in_its_own_entry(demo):
    shape = json.loads(shape_of(demo, "demo-teacher"))
    assert shape["vocab_size"] == demo.tokenizers["embedded"].vocabulary
    assert size_of(shape_of(demo, "demo-teacher")).layers == 4


def test_a_pruned_model_is_its_parent_with_fewer_layers():
    mini = configuration(["config/mini.yaml"])
    mini.shapes["smollm2-135m"] = {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    }  # fmt: skip
    whole, pruned = (size_of(shape_of(mini, f"smollm2-{name}")) for name in ("135m", "99m"))
    assert json.loads(shape_of(mini, "smollm2-99m"))[KEPT] == 20
    assert whole.parameters == 134_515_008
    assert pruned.layers == 20 and pruned.matrices * 30 == whole.matrices * 20


def test_a_model_that_is_here_needs_no_shape(tmp_path):
    mini = configuration(["config/mini.yaml"])
    with pytest.raises(UserError, match=r"^shapes\.smollm2-135m: missing; .* config\.json"):
        shape_of(mini, "smollm2-135m", tmp_path)
    folder = tmp_path / layout.run_folder("mini") / layout.model(layout.base_weights("smollm2-135m"))
    folder.mkdir(parents=True)
    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 11}
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": None}))
    assert json.loads(shape_of(mini, "smollm2-135m", tmp_path)) == config


def test_a_shape_that_makes_no_model_is_one_line():
    with pytest.raises(UserError, match="^shapes: .*nonesuch"):
        size_of(text_of({"model_type": "nonesuch"}))


def test_shapes_change_no_settings(demo):
    """A shape is a fact that no stage gets: a run's settings files stay what they are."""
    from minillm.config.derive import stage_settings

    changed = configuration(["config/demo.yaml"])
    changed.shapes["demo-teacher"] = {"model_type": "gpt2"}
    for config in (demo, changed):
        assert "shape" not in json.dumps(stage_settings(config, "base", model="demo-teacher"))
    assert stage_settings(demo, "base", model="demo-teacher") == stage_settings(
        changed, "base", model="demo-teacher"
    )


def test_rows_as_the_catalogue_counts_them():
    assert rows_of(PAPER, "dolly_train") == 11435 and rows_of(PAPER, "dolly_dev") == 1000
    assert rows_of(PAPER, "sni") == 1694 and rows_of(PAPER, "uni") == 10000
    assert rows_of(PAPER, "uni_all") == 10000


def test_prepared_data_takes_the_place_of_expectations(demo, tmp_path):
    assert lengths_of(demo, "embedded", tmp_path).assumed
    folder = tmp_path / layout.run_folder("demo") / layout.training_data("embedded")
    folder.mkdir(parents=True)
    for name, values in {"train": [[3, 5], [5, 9]], "dev": [[1, 1]], "corpus": [96, 90, 96]}.items():
        np.save(folder / f"{name}.lengths.npy", np.asarray(values, dtype=np.int32))
    found = lengths_of(demo, "embedded", tmp_path)
    assert (found.train, found.dev, found.chunks, found.chunk) == (2, 1, 3, 96)
    assert (found.prompt, found.response, found.assumed) == (4.0, 7.0, False)
