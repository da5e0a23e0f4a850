"""What the user is told about a precision on this processor, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from zero_case import supervised

from minillm.config.launch import Launch
from minillm.errors import UserError
from minillm.runtime import precisions
from minillm.runtime.engine import Engine
from minillm.runtime.processes import start

CPU, OLD = torch.device("cpu"), {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}


def processor(monkeypatch, **differs):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: OLD | differs)


def test_bf16_without_instructions_for_it(monkeypatch):
    processor(monkeypatch)
    assert precisions.remark("bf16", CPU).startswith("precision: this processor has no instructions for bf16")


@pytest.mark.parametrize("has", [{"avx512_bf16": True}, {"amx_bf16": True}, {"architecture": "aarch64"}])
def test_nothing_to_say_where_it_has_them_or_is_of_another_kind(monkeypatch, has):
    processor(monkeypatch, **has)
    assert precisions.remark("bf16", CPU) == ""


def test_nothing_to_say_of_other_precisions_and_devices(monkeypatch):
    processor(monkeypatch)
    assert precisions.remark("fp32", CPU) == precisions.remark("bf16", torch.device("cuda")) == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the training would be on the GPU")
def test_a_training_begins_with_it(monkeypatch, tmp_path, capsys):
    processor(monkeypatch)
    Engine(torch.nn.Linear(2, 2, dtype=torch.bfloat16), supervised(), Launch(), start(0), "bf16", tmp_path, 1)
    assert capsys.readouterr().out.count("no instructions for bf16") == 1


def test_what_the_device_cannot_is_refused_and_the_others_named():
    card = SimpleNamespace(is_bf16_supported=lambda: False, is_fp16_supported=lambda: True)
    with pytest.raises(
        UserError, match="^precision: bf16 cannot be trained on this device; choose fp16 or fp32$"
    ):
        precisions.check("bf16", card)
    assert precisions.check("fp16", card) is None
