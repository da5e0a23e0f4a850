"""launch.compile: an update with compiled decoder blocks is the update; nothing else runs through them."""

import pytest
import torch
from onpolicy_case import COUNT, engine_of, pair, rollouts, task
from test_compiled import needs_compiler

from minillm.config.launch import Launch
from minillm.models import compiling
from minillm.models.loading import decoder_blocks
from minillm.training.rollout_losses import micro_batches


def updated(folder, family, launch, **more):
    """Change of the weights by two updates on samples and plain text, in micro-batches of several sizes."""
    engine, teacher, chosen = engine_of(folder, family, launch, **more)
    before = [p.detach().clone() for p in engine.model.parameters()]
    made = rollouts(engine.model, teacher, chosen)
    for _ in range(2):
        engine.update(*micro_batches(engine, task(teacher, chosen), made, list(range(COUNT))))
    assert not any(
        "forward" in vars(block) for model in (engine.model, teacher) for block in decoder_blocks(model)
    )
    return [after.detach() - b for after, b in zip(engine.model.parameters(), before, strict=True)]


@needs_compiler
@pytest.mark.parametrize(
    ("family", "kind", "more"),
    [
        ("llama", {}, {}),
        ("gpt2", {}, {"dropout": True}),
        ("llama", {"gradient_checkpointing": True}, {}),
    ],
    ids=["plain", "dropout", "checkpointing"],
)
def test_the_update_stays(tmp_path, monkeypatch, family, kind, more):
    runs, plain = [], compiling.compiled

    def watched(blocks):
        found = plain(blocks)
        return [(block, lambda *a, run=run, **k: (runs.append(1), run(*a, **k))[1]) for block, run in found]

    monkeypatch.setattr(compiling, "compiled", watched)
    kind = {"micro_batch": 3, "attention": "eager", **kind}
    usual = updated(tmp_path / "usual", family, Launch(**kind), **more)
    assert not runs
    compiled = updated(tmp_path / "compiled", family, Launch(**kind, compile=True), **more)
    assert runs
    assert max(change.abs().max() for change in usual) > 1e-5
    torch.testing.assert_close(compiled, usual, atol=1e-6, rtol=1e-3)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(
        UserWarning, match="no no-such-compiler on this machine; blocks are computed without compiling"
    ):
        assert compiling.compiled(decoder_blocks(pair()[0])) == []
