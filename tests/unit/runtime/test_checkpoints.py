"""Checkpoints that are there and cannot be read, and what killed runs leave.

Also the models that a run which went back still chooses from.
"""

import errno
import json
import types

import pytest
import torch

from minillm.errors import UserError
from minillm.runtime import checkpoints
from minillm.runtime.processes import World
from minillm.training import dev_set
from minillm.training.dev_set import Candidates

WORLD = World(0, 1, torch.device("cpu"))


def save(folder, step):
    with checkpoints.saving(folder, step, 1, 0, WORLD) as partial:
        (partial / "weights").write_text(f"of step {step}")


def test_a_disk_that_does_not_answer_is_no_damage(tmp_path, monkeypatch):
    """Nothing is removed: what the file holds is not known."""
    save(tmp_path, 3)

    def fails(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "sha256", fails)
        with pytest.raises(
            UserError,
            match="step-0000003: cannot be read now, and nothing was removed; "
            ".*: rank 0: .*Stale file handle",
        ):
            checkpoints.newest(tmp_path, WORLD, print)
    assert checkpoints.newest(tmp_path, WORLD, print).step == 3


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest"])
def test_a_damaged_one_goes_and_the_one_before_is_taken(tmp_path, capsys, damage):
    for step in (3, 6):
        save(tmp_path, step)
    newest = tmp_path / "step-0000006"
    if damage == "changed":
        (newest / "weights").write_text("of step 7")
    else:
        (newest / ("weights" if damage == "missing" else checkpoints.MANIFEST)).unlink()
    assert checkpoints.newest(tmp_path, WORLD, print).step == 3
    assert f"{newest}: damaged checkpoint" in capsys.readouterr().out and not newest.exists()


def test_what_a_killed_run_left_half_made_goes(tmp_path):
    folder = tmp_path / "run"
    for path in (folder / ".partial-0000009", tmp_path / ".run.finished"):
        path.mkdir(parents=True)
    save(folder, 3)
    assert checkpoints.newest(folder, WORLD, print).step == 3
    assert [path.name for path in tmp_path.rglob("*") if path.is_dir()] == ["run", "step-0000003"]
    checkpoints.discard(folder)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def candidates(tmp_path, monkeypatch):
    """Of a run whose weights at a moment are `candidates.engine.model`, a text."""
    monkeypatch.setattr(
        dev_set, "save_model", lambda model, tokenizer, out, state: (out / "weights").write_text(model)
    )
    engine = types.SimpleNamespace(folder=tmp_path, world=WORLD, weights=lambda: None, model="")
    (tmp_path / "metrics.jsonl").write_text("")
    return Candidates(engine, None, ("best_rouge",))


def evaluated(candidates, history, step, rouge, weights):
    history.append({"step": step, "dev_rouge": rouge})
    candidates.engine.model = weights
    candidates.offer(history)


def test_a_run_that_goes_back_still_has_the_model_that_it_then_chooses(candidates, tmp_path):
    """Step 6 was best, its checkpoint is lost, and the second time it is not.

    The weights of step 3 are those that the evidence names.
    """
    history = []
    evaluated(candidates, history, 3, 0.5, "three")
    save(tmp_path, 3)
    candidates.prune(history)
    evaluated(candidates, history, 6, 0.6, "six")  # killed before it is saved
    history = history[:1]
    evaluated(candidates, history, 6, 0.4, "six again")
    save(tmp_path, 6)
    candidates.prune(history)
    (tmp_path / "out").mkdir()
    candidates.export("best_rouge", history, tmp_path / "out")
    assert (tmp_path / "out" / "weights").read_text() == "three"


def test_evaluations_that_are_no_number(candidates, tmp_path):
    """They are never chosen, and one later that is a number still is."""
    history = []
    evaluated(candidates, history, 3, float("nan"), "three")
    save(tmp_path, 3)
    candidates.prune(history)
    with pytest.raises(UserError, match="dev_rouge: none of 1 dev evaluations has a finite value"):
        candidates.export("best_rouge", history, tmp_path / "out")
    evaluated(candidates, history, 6, 0.4, "six")
    save(tmp_path, 6)
    candidates.prune(history)
    candidates.export("best_rouge", history, tmp_path / "out")
    assert (tmp_path / "out" / "weights").read_text() == "six"
    assert json.loads((tmp_path / "out" / "selection.json").read_text())["history"][0]["dev_rouge"] is None


def test_only_what_a_checkpoint_chooses_is_kept(candidates, tmp_path):
    history = []
    for step, rouge in ((2, 0.1), (4, 0.5), (6, 0.6), (8, 0.2), (10, 0.3)):
        evaluated(candidates, history, step, rouge, str(step))
        save(tmp_path, step)
        candidates.prune(history)
        kept = [int(path.name.removeprefix("step-")) for path in sorted((tmp_path / "candidates").iterdir())]
        assert kept == {2: [2], 4: [2, 4], 6: [4, 6], 8: [6], 10: [6]}[step]


@pytest.mark.parametrize(("old", "new"), [('"zero": 1', '"zero": 3'), ('"processes": 1', '"processes": 2')])
def test_the_manifest_protects_what_it_says_itself(tmp_path, capsys, old, new):
    save(tmp_path, 3)
    manifest = tmp_path / "step-0000003" / checkpoints.MANIFEST
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))
    assert checkpoints.newest(tmp_path, WORLD, print) is None
    assert "manifest.json is missing or damaged" in capsys.readouterr().out


def test_a_checkpoint_under_the_name_of_another_step(tmp_path, capsys):
    save(tmp_path, 3)
    (tmp_path / "step-0000003").rename(tmp_path / "step-0000009")
    assert checkpoints.newest(tmp_path, WORLD, print) is None
    assert "is of step 3" in capsys.readouterr().out


def test_a_file_that_was_not_saved_with_it(tmp_path, capsys):
    save(tmp_path, 3)
    (tmp_path / "step-0000003" / "zero_pp_rank_9_mp_rank_00_optim_states.pt").write_text("more")
    assert checkpoints.newest(tmp_path, WORLD, print) is None
    assert "was not saved with it" in capsys.readouterr().out


def test_manifests_of_earlier_versions_have_no_hash(tmp_path):
    save(tmp_path, 3)
    manifest = tmp_path / "step-0000003" / checkpoints.MANIFEST
    values = {key: value for key, value in json.loads(manifest.read_text()).items() if key != "sha256"}
    manifest.write_text(json.dumps(values))
    assert checkpoints.newest(tmp_path, WORLD, print).step == 3
