"""Memory of a job, part by part: counted by hand, and against real tensors."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from minillm.config.launch import Launch
from minillm.config.onpolicy import OnPolicy
from minillm.errors import UserError
from minillm.fits import hours, passes
from minillm.fits.memory import BUCKET, Memory, least, memory
from minillm.fits.passes import How, Loss, Rows, Update
from minillm.fits.rows import Prompts
from minillm.fits.sizes import size_of, text_of
from minillm.fits.tensor_bytes import TensorBytes
from minillm.fits.work import Draw, Part, Work
from minillm.models.head import head_of, response_losses

# Two tied GPT-2s by hand: embeddings V d, positions 32 d, blocks of 12 d^2 matrices and 13 d vectors, a last
# norm of 2 d.
V = 100
D, D_TEACHER = 8, 16
N = V * D + 32 * D + 2 * (12 * D * D + 13 * D) + 2 * D
N_TEACHER = V * D_TEACHER + 32 * D_TEACHER + 3 * (12 * D_TEACHER**2 + 13 * D_TEACHER) + 2 * D_TEACHER


def shape(width, layers, **changes):
    return text_of(
        {
            "model_type": "gpt2", "vocab_size": V, "n_positions": 32, "n_embd": width, "n_layer": layers,
            "n_head": 2, "bos_token_id": 0, "eos_token_id": 0, **changes,
        }
    )  # fmt: skip


STUDENT, TEACHER = size_of(shape(D, 2)), size_of(shape(D_TEACHER, 3))


def on_policy(**launch):
    """A collection of 8 rows of 10 + 6 tokens, batches of 4."""
    part = Part(4, 10, 6, 16, 6, Loss(TEACHER, 0.0, OnPolicy()), scored=True)
    draw = Draw((STUDENT, TEACHER), 8, 1, 10, 6, longest=10, horizon=6, alpha=0.2, record=True)
    return Work(
        "minillm", STUDENT, (TEACHER,), Launch(**{"micro_batch": 2, "eval_batch": 3, **launch}), "bf16",
        steps=2, batch=4, parts=(part,), draws=(draw,), kept=8 * 6,
    )  # fmt: skip


def test_a_small_case_counted_by_hand():
    work = on_policy(processes=2, zero=1, micro_batch=1)
    found = memory(work)
    assert (STUDENT.parameters, TEACHER.parameters) == (N, N_TEACHER)
    assert found.weights == 2 * N and found.teacher == 2 * N_TEACHER
    # float32 weights and two moments, half of them.
    assert found.optimizer == 12 * (N // 2)
    # Of earlier micro-batches; ZeRO 1 adds new ones in place.
    assert (found.gradients, found.waiting, found.arriving) == (2 * N, 2 * N, 0)
    assert found.buckets == 2 * 200_000_000 * 2 == 2 * BUCKET * 2
    # The flat copy of the decaying weights' gradients, and it in float32.
    vectors = 2 * 13 * D + 2 * D
    assert found.step == (2 + 4) * ((N - vectors) // 2)
    # Keys and values of three of a process's four rows: 16 positions, both models' layers.
    assert found.caches == 3 * 16 * 2 * 2 * (2 * D + 3 * D_TEACHER)
    # The teacher's hidden states of the whole collection, on every process.
    assert found.store == 8 * 6 * D_TEACHER * 2
    assert (found.gathered, found.host) == (0, 0)
    held = found.weights + found.teacher + found.optimizer
    assert found.peak == max(
        held + found.waiting + found.buckets + found.activations + found.tiles,
        held + found.gradients + found.step,
        held + found.caches + found.positions,
    )


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_zero_shards_the_optimizer_then_gradients_then_weights(zero):
    found = memory(on_policy(processes=4, zero=zero, micro_batch=1))
    assert found.optimizer == 12 * N // (4 if zero else 1)
    # From ZeRO 2 on.
    assert found.gradients == (2 * (N // 4) if zero >= 2 else 2 * N)
    assert found.weights == 2 * N // (4 if zero == 3 else 1)
    assert found.gathered == (2 * N if zero == 3 else 0)


@pytest.mark.parametrize(
    ("zero", "micro_batch", "waiting", "arriving"),
    # Two rows for each of two processes: one micro-batch, or two.
    [(1, 2, 0, 2 * N), (1, 1, 2 * N, 0), (2, 2, 0, 2 * (N // 2)), (2, 1, 2 * (N // 2), 2 * (N // 2))],
)
def test_gradients_wait_for_the_last_micro_batch_and_arrive_while_activations_go(
    zero, micro_batch, waiting, arriving
):
    found = memory(on_policy(processes=2, zero=zero, micro_batch=micro_batch))
    assert (found.waiting, found.arriving) == (waiting, arriving)
    update = dataclasses.replace(found, activations=0, tiles=0).moments["update"]
    assert update == found.held + waiting + found.buckets + arriving


def test_offload_moves_the_optimizer_to_the_host():
    found = memory(on_policy(processes=2, zero=2, offload=True))
    assert (found.optimizer, found.step) == (0, 0) and found.host == 16 * (N // 2)
    # Only from ZeRO 2 on.
    assert memory(on_policy(processes=2, zero=1, offload=True)).optimizer == 12 * (N // 2)


def test_a_sharded_teacher_is_whole_while_sampling():
    found = memory(on_policy(processes=4, shard_teacher=True))
    assert found.teacher == 2 * N_TEACHER // 4 + 2 * V * D_TEACHER
    assert found.gathered == 2 * N_TEACHER
    assert memory(on_policy(processes=1, shard_teacher=True)).teacher == 2 * N_TEACHER


def test_float32_weighs_twice_and_has_its_own_copy_of_the_weights():
    work = dataclasses.replace(on_policy(zero=0), precision="fp32")
    assert memory(work).weights == 4 * N and memory(work).optimizer == 8 * N
    sharded = dataclasses.replace(on_policy(zero=1), precision="fp32")
    assert memory(sharded).optimizer == 12 * N


def test_smaller_micro_batches_and_recomputing_keep_less():
    large, half, recomputed = (
        memory(on_policy(**changes)).activations
        for changes in (
            {"micro_batch": 4},
            {"micro_batch": 2},
            {"micro_batch": 4, "gradient_checkpointing": True},
        )
    )
    assert half * 2 == pytest.approx(large, rel=0.02)
    assert recomputed < large / 2


def test_fewer_rows_at_once_have_smaller_caches():
    three, one = (memory(on_policy(eval_batch=n)) for n in (3, 1))
    assert one.caches * 3 == three.caches
    # A budget of positions: 16 a row.
    assert memory(on_policy(eval_batch=3, eval_tokens=33)).caches == 2 * one.caches


def test_on_a_cpu_all_processes_share_one_memory_and_the_store():
    found = Memory(weights=10, activations=5, store=3, host=2)
    assert found.on("cuda", 4) == 15 and found.of_cpu(4) == 11 and found.on("cpu", 4) == 71


def by_coins(work, coins, **changes):
    draw = dataclasses.replace(work.draws[0], coins=coins, **changes)
    return memory(dataclasses.replace(work, draws=(draw,)))


def test_coins_keep_the_students_states_and_without_any_the_teacher_has_no_cache():
    plain = memory(on_policy())
    coins, none = (by_coins(on_policy(), 0, alpha=alpha) for alpha in (0.2, 0.0))
    assert coins.caches == plain.caches
    # Three rows of 16 positions, keys and values of the student alone.
    assert none.caches == 3 * 16 * 2 * 2 * 2 * D
    assert none.positions >= passes.without_gradient(TEACHER, Rows(3, 16, 1), How(torch.bfloat16, "cuda"))


def test_a_mean_of_the_student_is_kept_in_float32():
    """Next to the model in half precision that teaches, and in each checkpoint; float32 needs no copy."""
    plain, mean = on_policy(zero=0), dataclasses.replace(on_policy(zero=0), mean=N)
    assert memory(mean).teacher == 2 * N_TEACHER + 4 * N
    assert memory(mean).peak - memory(plain).peak == least(mean) - least(plain) == 4 * N
    single = dataclasses.replace(mean, precision="fp32")
    assert memory(single).teacher == 4 * N_TEACHER
    assert hours.state_bytes(mean) - hours.state_bytes(plain) == 4 * N


def test_longer_prompts_of_the_teacher_are_in_caches_and_passes():
    """The student's have up to 10 tokens, the teacher's 24; 6 follow."""
    shown = Prompts(20.0, 24)
    work = on_policy(micro_batch=4)
    part = dataclasses.replace(work.parts[0], reads=1.0, shown=shown)
    long = dataclasses.replace(work, parts=(part,), draws=(dataclasses.replace(work.draws[0], shown=shown),))
    found, plain = memory(long), memory(work)
    # Keys and values of three rows.
    assert plain.caches == 3 * 2 * 2 * (16 * 2 * D + 16 * 3 * D_TEACHER)
    assert found.caches == 3 * 2 * 2 * (16 * 2 * D + 30 * 3 * D_TEACHER)
    how = How(torch.bfloat16, "cuda")
    assert found.positions >= passes.without_gradient(TEACHER, Rows(3, 24, 1), how)
    assert plain.reading == 0 and found.reading == passes.without_gradient(TEACHER, Rows(4, 30, 1), how)
    # A budget of 64 positions: two such rows, four of the student's.
    budget = Launch(micro_batch=4, micro_tokens=64, eval_batch=3, eval_tokens=64)
    two, four = (memory(dataclasses.replace(w, launch=budget)) for w in (long, work))
    assert two.reading == passes.without_gradient(TEACHER, Rows(2, 30, 1), how)
    assert two.activations < four.activations == plain.activations
    assert two.caches == 2 * found.caches // 3 and four.caches == plain.caches
    assert Memory(activations=5, tiles=1, reading=9).moments["update"] == 9


def test_a_position_by_coins_takes_less_than_a_recorded_one():
    coin, mixed = passes.by_coin(64, 1000), passes.position(64, 1000, True, 0.2, True)
    assert 3 * 64 * 1000 * 4 <= coin < mixed
    # A tile of a CPU has 2**22 logits.
    few, tile = (passes.recorded(tokens, 1000, 0.2, "cpu") for tokens in (64, 10**6))
    assert few == mixed and tile == pytest.approx(mixed * 2**22 / 64000, rel=0.01)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_least_is_no_more_than_a_job_takes(zero, precision):
    work = dataclasses.replace(on_policy(processes=2, zero=zero), precision=precision)
    needed = memory(work)
    assert needed.weights < least(work) <= needed.moments["step"] + needed.gathered


def test_processes_must_divide_the_batch():
    with pytest.raises(UserError, match="cannot be split evenly over 3 processes"):
        memory(on_policy(processes=3))


# --- passes on fake tensors
def real_update(text, rows, loss):
    """A micro-batch of a real model in float32, followed: (activations and tiles, with the backward pass)."""
    torch.manual_seed(0)
    arguments = json.loads(text)
    with TensorBytes() as live:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**arguments)).eval()
        for values in model.parameters():
            values.register_post_accumulate_grad_hook(passes._drop)
        tokens = rows.tokens
        function, constants = loss.made(tokens, V, torch.float32)
        constants(slice(0, 1))
        batch = passes._batch(rows, tokens)
        # Padding: otherwise transformers leaves the mask out.
        batch.attention[0, 0] = 0
        before = live.restart()
        tile = passes.Compilable(function, constants, lambda _: None, compile=False)
        total = response_losses(model, batch, [(slice(None), tile, head_of(model, V))]).sum()
        forward = live.peak - before
        total.backward()
        return forward, live.peak - before


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_a_pass_on_fake_tensors_takes_what_a_real_one_takes(kind):
    others = {
        "opt": {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64},
        "llama": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48},
    }
    common = {"vocab_size": V, "num_hidden_layers": 5, "num_attention_heads": 2}
    text = shape(32, 5) if kind == "gpt2" else text_of({**common, **others[kind]})
    rows, loss = Rows(4, 24, 9), Loss(TEACHER, 0.5)
    forward, both = real_update(text, rows, loss)
    found = passes.update(size_of(text), rows, How(torch.float32, "cpu"), loss)
    # The plan adds the teacher's hidden states, which were there before.
    theirs = rows.tokens * D_TEACHER * 4
    assert found.activations + found.tiles - theirs == pytest.approx(forward, rel=0.02)
    assert found.peak - theirs == pytest.approx(both, rel=0.05)


def test_blocks_that_are_not_run_are_like_those_that_are():
    how, rows, loss = How(torch.float32, "cpu"), Rows(2, 24, 9), Loss()
    six = size_of(shape(32, 6))
    every = passes._update(six, 6, rows, how, loss)
    assert passes.update(six, rows, how, loss).activations == pytest.approx(every.activations, rel=0.01)


def test_many_tokens_are_alike_beyond_a_block(monkeypatch):
    from minillm.models import tiled_loss

    monkeypatch.setattr(tiled_loss, "TILE", 30 * 3000)
    monkeypatch.setattr(tiled_loss, "BLOCK", 60 * 3000)
    how, rows = How(torch.float32, "cpu"), Rows(8, 24, 20)
    size = size_of(shape(32, 1, vocab_size=3000))
    passes.update.cache_clear()
    short = passes.update(size, rows, how, Loss())
    monkeypatch.setattr(passes, "_tokens", lambda rows, *_: rows.tokens)
    passes.update.cache_clear()
    whole = passes.update(size, rows, how, Loss())
    passes.update.cache_clear()
    assert short.activations + short.tiles == pytest.approx(whole.activations + whole.tiles, rel=0.02)


def test_dropout_keeps_masks_and_a_gpu_none_inside_attention():
    rows, loss, size = Rows(2, 24, 9), Loss(), size_of(shape(32, 2))
    without, with_masks, fused = (
        passes.update(size, rows, How(torch.float32, device, dropout), loss).activations
        for device, dropout in (("cpu", False), ("cpu", True), ("cuda", True))
    )
    assert without < fused < with_masks


def test_on_a_gpu_a_tile_of_half_precision_has_its_product_in_float32():
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.bfloat16)):
        with passes._faked(How(torch.bfloat16, device)), torch.no_grad():
            hidden, weight = (torch.empty(n, 16, dtype=torch.bfloat16) for n in (5, V))
            assert passes.Head(weight, None, V).project(hidden).dtype == dtype


def test_drawing_takes_logits_and_sampling_one_model_less():
    one, two = (passes.position(4, 1000, teacher, 0.2, True) for teacher in (False, True))
    assert 2 * 4 * 1000 * 4 < one < two


def test_kernels_grow_with_layers():
    few, many = (passes.kernels(size_of(shape(32, n))) for n in (2, 12))
    a_block = (many - few) / 10
    assert 10 < a_block < 60 and many == pytest.approx(few + 10 * a_block)


def test_the_largest_moment_sums_its_parts():
    assert Update(1, 2, 3).peak == 6


# --- what follows storages
def test_a_storage_counts_once_and_until_it_ends():
    with TensorBytes() as live:
        before = live.now
        values = torch.zeros(10)
        view = values[2:]
        assert live.now - before == 40
        del values
        assert live.now - before == 40
        del view
        assert live.now == before and live.peak >= before + 40


def test_storages_of_one_size_are_left_out():
    with TensorBytes(apart=(4000,)) as live:
        values = torch.zeros(1000)
        assert live.now == 0 and live.apart[values.nbytes] == 1
