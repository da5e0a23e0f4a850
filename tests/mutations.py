"""Break the code in one named way at a time, in a copy, and show that the test which guards it turns red.

`python tests/mutations.py [NAME ...]`: every mutation, or those named. The exit status is 1 where
one survives its test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
TESTS = "tests/unit/training/test_invariances.py"
TILES = "tests/unit/models/test_tiled_loss.py"
TWO = "tests/unit/training/test_two_templates.py"
PARTS = "tests/unit/training/test_objective_parts.py"
SAMPLERS = "tests/unit/sampling/test_rollout_samplers.py"
AHEAD = "tests/unit/training/test_drawn_ahead.py"
WEIGHTS = "tests/unit/training/test_token_weights.py"
DIAGNOSIS = "tests/unit/training/test_diagnosis.py"
SAMPLED = "tests/unit/training/test_sampled_gradient.py"
ANCHORS = "tests/unit/training/test_anchors.py"
TEACHING = "tests/unit/training/test_who_teaches.py"
CATALOGUE = "tests/unit/training/test_catalogue_formulas.py"
ARCHIVE = "tests/unit/publish/test_archive.py"
CHECKLIST = "tests/unit/publish/test_checklist.py"
CRATE = "tests/unit/publish/test_crate.py"


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in one file of the package; `test` must fail then."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    Mutation(
        "an archive's file may lie outside of its folder",
        "publish/archive.py",
        "if not _is_inside(entry.name) or entry.name in seen:",
        "if entry.name in seen:",
        f"{ARCHIVE}::test_names_that_lead_out_are_refused",
    ),
    Mutation(
        "an archive has no run times",
        "publish/archive.py",
        '    layout.benchmark("**/*"),\n',
        "",
        f"{ARCHIVE}::test_tables_come_out_of_the_archive_byte_by_byte",
    ),
    Mutation(
        "an archive tells when it was made",
        "publish/archive.py",
        "            entry.size = len(files[name])\n",
        "            entry.size = len(files[name])\n            entry.mtime = os.times().elapsed\n",
        f"{ARCHIVE}::test_the_same_run_gives_the_same_bytes",
    ),
    Mutation(
        "a rebuilt table that differs is not said",
        "verify/rebuild.py",
        "if place.read_bytes() != (rebuilt / path).read_bytes():",
        "if not place.read_bytes():",
        f"{ARCHIVE}::test_a_change_is_a_difference",
    ),
    Mutation(
        "keys go into an archive",
        "publish/archive.py",
        "holds(text, value):",
        "value == text:",
        f"{ARCHIVE}::test_what_may_not_leave_the_machine_is_refused",
    ),
    Mutation(
        "the checklist invents a zero",
        "publish/checklist_answers.py",
        "    if not known:\n        return NOT_RECORDED\n",
        "",
        f"{CHECKLIST}::test_nothing_is_invented_for_a_run_without_results",
    ),
    Mutation(
        "the checklist counts models of another configuration",
        "publish/checklist_facts.py",
        "if weights in measured or self._is_origin(weights.split",
        "if weights or self._is_origin(weights.split",
        f"{CHECKLIST}::test_answers_are_what_the_files_say",
    ),
    Mutation(
        "the steps of a crate are those of other jobs",
        "publish/crate.py",
        "instrument=steps[job.rule]",
        "instrument=next(iter(steps.values()))",
        f"{CRATE}::test_the_crate_is_a_provenance_run_crate",
    ),
    Mutation(
        "a parameter of another divergence is accepted",
        "config/unused.py",
        'return "" if PARAMETERS.get(s.objective) == key else',
        'return "" if key else',
        "tests/unit/config/test_unused.py::test_a_key_that_nothing_reads_is_one_line",
    ),
    Mutation(
        "a key that one method reads is refused",
        "config/unused.py",
        "if reasons and all(reasons):",
        "if reasons and any(reasons):",
        "tests/unit/config/test_unused.py::test_a_key_that_methods_share_is_read_by_one_of_them",
    ),
    Mutation(
        "the mean of a student is not counted",
        "fits/memory.py",
        "return 4 * work.mean if",
        "return 0 * work.mean if",
        "tests/unit/test_fits_memory.py::test_a_mean_of_the_student_is_kept_in_float32",
    ),
    Mutation(
        "the teacher's prompts are as long as the student's",
        "fits/work.py",
        "[self.shown or usual]",
        "[usual]",
        "tests/unit/test_fits_memory.py::test_longer_prompts_of_the_teacher_are_in_caches_and_passes",
    ),
    Mutation(
        "any broken pipe ends a command quietly",
        "cli.py",
        "if not unread:",
        "if False:",
        "tests/unit/test_cli.py::test_a_pipe_of_a_library_that_breaks_is_an_error",
    ),
    Mutation(
        "the top-k baseline is not renormalised",
        "training/divergences.py",
        'on_set(student_logits, teacher_logits, "student_topk", k, renormalise=True)',
        'on_set(student_logits, teacher_logits, "student_topk", k)',
        f"{SAMPLED}::test_the_loss_and_its_gradient",
    ),
    Mutation(
        "the top-k baseline passes a gradient on",
        "training/divergences.py",
        "    with torch.no_grad():\n        chosen = on_set(student_logits",
        "    with torch.enable_grad():\n        chosen = on_set(student_logits",
        f"{SAMPLED}::test_the_baseline_is_a_constant",
    ),
    Mutation(
        "rewards have no floor",
        "objectives.py",
        "rewards = rewards.clamp(min=floor)",
        "rewards = rewards.clamp(min=-1e9)",
        f"{SAMPLED}::test_the_loss_and_its_gradient",
    ),
    Mutation(
        "both phases of the mask are one",
        "training/token_weights.py",
        "first = s.switch is None or progress < s.switch",
        "first = True",
        f"{SAMPLED}::test_the_mask_of_reopold_switches",
    ),
    Mutation(
        "blocks that recover weigh without bound",
        "training/token_weights.py",
        ".clamp(max=1 + delta)",
        "",
        f"{SAMPLED}::test_blocks_that_have_drifted_weigh_less",
    ),
    Mutation(
        "a response counts by its tokens",
        "training/token_weights.py",
        "    if s.per_response:\n",
        "    if False:\n",
        f"{SAMPLED}::test_the_mean_over_responses_of_means_over_tokens",
    ),
    Mutation(
        "the teacher's texts have the student's weight",
        "training/mini_batch.py",
        "weights.append((2 - self.balance) / self.denominator)",
        "weights.append(self.balance / self.denominator)",
        "tests/unit/training/test_teacher_texts.py::test_the_loss_and_its_gradient",
    ),
    Mutation(
        "the teacher's probability counts once",
        "training/hybrid_policy.py",
        "(1.0 + (second < 0))",
        "1.0",
        "tests/unit/training/test_hybrid_policy.py::test_the_loss_and_its_gradient",
    ),
    Mutation(
        "a token that the student draws too counts twice",
        "training/hybrid_policy.py",
        "torch.where(drawn == tokens, 0.0, second * of_drawn)",
        "second * of_drawn",
        "tests/unit/training/test_hybrid_policy.py::test_the_loss_and_its_gradient",
    ),
    Mutation(
        "every step draws the same tokens",
        "training/hybrid_policy.py",
        "uniforms(seed + DRAWS, step, rows",
        "uniforms(seed + DRAWS, 0, rows",
        "tests/unit/training/test_hybrid_policy.py::test_each_step_draws_anew",
    ),
    Mutation(
        "a supervised variant has its stage's settings",
        "config/experiment.py",
        "        if method not in self.variants:\n            return settings\n",
        "        return settings\n",
        "tests/workflow/test_plan.py::test_the_settings_of_a_supervised_variant",
    ),
    Mutation(
        "a baseline is a bias",
        "evaluation/signal_estimators.py",
        "return values[constants.family.prefixes] * constants.family.mask",
        "return values[constants.family.prefixes] * constants.rewards",
        "tests/unit/evaluation/test_estimators.py::test_which_signals_are_exact",
    ),
    Mutation(
        "a configuration makes another method of a catalogue's entry",
        "config/methods.py",
        "for k, v in expanded(values, where, under).items() if k in SCHEDULE}",
        "for k, v in expanded(values, where, under).items()}",
        "tests/unit/config/test_methods.py::test_the_configuration_does_not_make_another_method_of_it",
    ),
    Mutation(
        "a trial is as long as the training",
        "config/grid.py",
        "chosen.lr, chosen.length, config.grid.share)",
        "chosen.lr, chosen.length)",
        "tests/unit/config/test_grid_section.py::test_a_trial_is_the_method_itself_but_for_rate_and_time",
    ),
    Mutation(
        "a grid looks at the last evaluation",
        "training/grid.py",
        'kept = choose(history, "best_rouge")',
        "kept = history[-1]",
        "tests/unit/training/test_grid_choice.py::test_the_value_is_that_of_the_checkpoint_that_would_be_kept",
    ),
    Mutation(
        "a training ignores what its grid has chosen",
        "training/grid.py",
        "return dataclasses.replace(settings, training=training), summary",
        "return settings, summary",
        "tests/unit/training/test_grid_choice.py::test_a_training_takes_rate_and_length_and_records_them",
    ),
    Mutation(
        "the teacher reads the student's prompts",
        "training/supervised.py",
        "read = self.theirs[0] if self.theirs else examples",
        "read = examples",
        f"{TWO}::test_kd_equals_an_independent_loss_however_it_is_split",
    ),
    Mutation(
        "the end tokens are not exchanged",
        "data/teacher_prompts.py",
        "return None if self.ends[0] == self.ends[1] else self.ends",
        "return None",
        f"{TWO}::test_a_divergence_equals_an_independent_one",
    ),
    Mutation(
        "gold answers are divided by the samples' tokens",
        "training/mini_batch.py",
        "s.gold.coefficient / self.gold_denominator",
        "s.gold.coefficient / self.denominator",
        f"{ANCHORS}::test_gold_answers_are_learned_next_to_samples",
    ),
    Mutation(
        "the target is extrapolated the other way",
        "objectives.py",
        "(1 - coefficient) * initial.clamp(min=FLOOR)",
        "(coefficient - 1) * initial.clamp(min=FLOOR)",
        f"{ANCHORS}::test_the_target_is_extrapolated",
    ),
    Mutation(
        "the teacher's token does not fade",
        "training/rollout_losses.py",
        "max(0.0, 1 - step / term.until)",
        "1.0",
        f"{ANCHORS}::test_the_teachers_token_fades",
    ),
    Mutation(
        "a student teaches itself with dropout",
        "training/teaching.py",
        "    model.eval()\n    try:",
        "    try:",
        f"{TEACHING}::test_it_teaches_without_dropout",
    ),
    Mutation(
        "what a moving teacher said is kept for a collection",
        "config/onpolicy.py",
        "not (self.teacher.moves or self.teacher.panel)",
        "True",
        f"{TEACHING}::test_the_student_teaches_itself_by_another_prompt",
    ),
    Mutation(
        "the mean follows the student at the wrong rate",
        "training/teaching.py",
        "mean.lerp_(weight.detach().to(mean.dtype), self.rate)",
        "mean.lerp_(weight.detach().to(mean.dtype), 1 - self.rate)",
        f"{TEACHING}::test_the_mean_of_the_weights",
    ),
    Mutation(
        "a mean of the student is not saved",
        "training/run_state.py",
        'values["mean"] = self.mean.means',
        "pass",
        f"{TEACHING}::test_a_run_with_a_mean_teacher_resumes_exactly",
    ),
    Mutation(
        "a tile across two teachers takes too much of the second",
        "training/teaching.py",
        "min(tile.stop - first, count)",
        "min(tile.stop, count)",
        f"{TEACHING}::test_tiles_across_teachers",
    ),
    Mutation(
        "all categories have one teacher",
        "training/who_teaches.py",
        'numbers.get(r["category"], 0)',
        "0",
        "tests/unit/training/test_teaching_stages.py::test_a_category_finds_its_teacher",
    ),
    Mutation(
        "the dev set is measured with the prompts of who teaches",
        "training/dev_evaluation.py",
        "usual = dataclasses.replace(dev, teacher=prompts)",
        "usual = dev",
        f"{TEACHING}::test_the_dev_set_is_measured_by_the_pairs_teacher",
    ),
    Mutation(
        "the teacher is shown no answer",
        "data/shown.py",
        '"output": row.outputs[0].strip(),',
        '"output": "",',
        "tests/unit/data/test_shown.py::test_the_rows_by_another_text_with_the_same_responses",
    ),
    Mutation(
        "a template drops rows only for itself",
        "data/prepare.py",
        "any(prompt_length(row, other, where) > settings.max_prompt for other in linked)",
        "False",
        "tests/unit/data/test_chat_data.py::test_what_one_template_drops_is_dropped_for_both",
    ),
    Mutation(
        "exponents change places",
        "objectives.py",
        "alpha * (both * p).exp() + beta * (both * q).exp()",
        "beta * (both * p).exp() + alpha * (both * q).exp()",
        f"{PARTS}::test_the_exponents_of_the_alpha_beta_divergence",
    ),
    Mutation(
        "shares of forward and reverse KL have a gradient",
        "objectives.py",
        "share = torch.sigmoid(gap).detach()",
        "share = torch.sigmoid(gap)",
        f"{PARTS}::test_divergences",
    ),
    Mutation(
        "weights of entries have a gradient",
        "objectives.py",
        "torch.zeros_like(q)}[weight].detach()",
        "torch.zeros_like(q)}[weight]",
        f"{PARTS}::test_weights_of_entries",
    ),
    Mutation(
        "an entry of both top-k sets counts twice",
        "token_sets.py",
        "torch.cat([torch.ones_like(shared), ~shared], -1)",
        "None",
        f"{PARTS}::test_sets_of_entries",
    ),
    Mutation(
        "probabilities of a set always sum to 1",
        "token_sets.py",
        "pair.append(values.log_softmax(-1) if renormalise else values)",
        "pair.append(values.log_softmax(-1))",
        f"{PARTS}::test_sets_of_entries",
    ),
    Mutation(
        "the target is trained",
        "objectives.py",
        "_log_softmax(student_logits.detach(), teacher_logits)",
        "_log_softmax(student_logits, teacher_logits)",
        f"{PARTS}::test_moving_target",
    ),
    Mutation(
        "the target starts again with every start",
        "training/run_state.py",
        'values["target"] = self.target.saved()',
        "pass",
        f"{PARTS}::test_a_run_with_a_moving_target_resumes_exactly",
    ),
    Mutation(
        "the teacher's share in the assistant is the student's",
        "objectives.py",
        "_mixture(power * p, power * q, share)",
        "_mixture(power * q, power * p, share)",
        f"{PARTS}::test_assistant",
    ),
    Mutation(
        "a token's discrepancy counts its own",
        "training/token_weights.py",
        "before = (gaps.cumsum(1) - gaps) * mask",
        "before = gaps.cumsum(1) * mask",
        f"{WEIGHTS}::test_each_factor",
    ),
    Mutation(
        "positions of weights count what is masked",
        "training/token_weights.py",
        "position, length = mask.cumsum(1) - 1, mask.sum(1, keepdim=True)",
        "position, length = torch.ones_like(mask).cumsum(1) - 1, mask.sum(1, keepdim=True)",
        f"{WEIGHTS}::test_under_every_mask",
    ),
    Mutation(
        "token weights are not the advantages'",
        "training/rollout_losses.py",
        "credit = credit * factors[0]",
        "pass",
        f"{WEIGHTS}::test_weights_in_the_long_term",
    ),
    Mutation(
        "the teacher's entropy is that of the padded vocabulary",
        "training/rollouts.py",
        "head = head_of(teacher, dev.vocabulary, settings.temperature)",
        "head = head_of(teacher, head_of(teacher, 1).weight.shape[0], settings.temperature)",
        f"{WEIGHTS}::test_the_teachers_entropy",
    ),
    Mutation(
        "weights are normalised over the collection",
        "training/token_weights.py",
        "/ weights[rows].sum().clamp(min=1e-8)",
        "/ weights.sum().clamp(min=1e-8)",
        f"{WEIGHTS}::test_normalised_by_the_mini_batch",
    ),
    Mutation(
        "a further term has the objective's token weights",
        "training/sample_loss.py",
        "by = factors[term] if factors else None",
        "by = factors[0] if factors else None",
        f"{WEIGHTS}::test_further_terms",
    ),
    Mutation(
        "padding is attended to",
        "data/batching.py",
        "attention[i, first:] = 1",
        "attention[i] = 1",
        f"{TESTS}::test_micro_batches",
    ),
    Mutation(
        "positions count the padding",
        "models/head.py",
        "position_ids=batch.positions",
        "position_ids=torch.arange(batch.tokens.shape[1]).expand_as(batch.tokens)",
        f"{TESTS}::test_amount_and_side_of_padding",
    ),
    Mutation(
        "whitening counts the physical width",
        "training/credit.py",
        "total = len(values) * settings.max_tokens",
        "total = values.numel()",
        f"{TESTS}::test_amount_and_side_of_padding",
    ),
    Mutation(
        "each micro-batch has its own mean",
        "training/mini_batch.py",
        "weights.append((1 if self.balance is None else self.balance) / self.denominator)",
        "weights.append(1 / first)",
        f"{TESTS}::test_micro_batches",
    ),
    Mutation(
        "every micro-batch is a step",
        "runtime/engine.py",
        "set_gradient_accumulation_boundary(place == len(parts) - 1)",
        "set_gradient_accumulation_boundary(True)",
        f"{TESTS}::test_gradient_accumulation",
    ),
    Mutation(
        "plain text is scored as samples are",
        "training/mini_batch.py",
        "slice(third, None), self.on_texts(texts, tokens[third:])",
        "slice(third, None), self.on_texts(texts, tokens)",
        "tests/unit/training/test_onpolicy_settings.py::test_presets_reproduce_the_formulas",
    ),
    Mutation(
        "a budget of tokens loses rows",
        "data/batching.py",
        "batches.append([])",
        "batches = [[]]",
        f"{TESTS}::test_micro_batches",
    ),
    Mutation(
        "the average over processes is not undone",
        "runtime/engine.py",
        "self.engine.backward(value * self.world.size)",
        "self.engine.backward(value)",
        f"{TESTS}::test_two_processes",
    ),
    Mutation(
        "student's logits are not normalised",
        "objectives.py",
        "return _full(student_logits).log_softmax(-1), ",
        "return _full(student_logits), ",
        f"{TESTS}::test_shift_of_the_logits",
    ),
    Mutation(
        "padded entries are scored",
        "models/head.py",
        "Head(weight, bias, vocabulary, cap, temperature, swap=swap)",
        "Head(weight, bias, weight.shape[0], cap, temperature, swap=swap)",
        f"{TESTS}::test_padded_vocabulary",
    ),
    Mutation(
        "whitening counts masked positions",
        "training/credit.py",
        "return objectives.whiten(values, mask)",
        "return objectives.whiten(values, None)",
        f"{TESTS}::test_amount_and_side_of_padding",
    ),
    Mutation(
        "kept hidden states of other rows",
        "training/mini_batch.py",
        "rollouts.teacher_hidden[i] for i in rows",
        "rollouts.teacher_hidden[i] for i in sorted(rows)",
        f"{TILES}::test_kept_hidden_states_give_the_same_loss",
    ),
    Mutation(
        "one block's gradient of the matrix",
        "models/tiled_loss.py",
        "used.addmm_(logit_grads.t(), hidden[block])",
        "used.copy_(logit_grads.t() @ hidden[block])",
        f"{TILES}::test_every_divergence_exactly",
    ),
    Mutation(
        "the cap is forgotten",
        "models/tiled_loss.py",
        "if softcap is not None",
        "if False",
        f"{TILES}::test_families",
    ),
    Mutation(
        "masks come from token values",
        "data/batching.py",
        "attention[i, first:] = 1",
        "attention[i, first:] = (tokens[i, first:] != pad).long()",
        f"{TESTS}::test_pad_may_be_eos",
    ),
    Mutation(
        "advantages of other rows",
        "training/mini_batch.py",
        "moved(values[rows][valid], self.device)",
        "moved(values[: len(rows)][valid], self.device)",
        f"{TESTS}::test_order_of_rows",
    ),
    Mutation(
        "the current reward is in the return",
        "objectives.py",
        "if include_current else (after, count)",
        "if True else (after, count)",
        "tests/unit/training/test_onpolicy_settings.py::test_presets_reproduce_the_formulas",
    ),
    Mutation(
        "the clip is one-sided",
        "objectives.py",
        "ratio.clamp(1.0 - clip, 1.0 + clip)",
        "ratio.clamp(max=1.0 + clip)",
        "tests/unit/test_objectives.py::test_policy_gradient_loss",
    ),
    Mutation(
        "a preset comes before what is given",
        "config/presets.py",
        "return {**PRESETS[name], **values}",
        "return {**values, **PRESETS[name]}",
        "tests/unit/training/test_onpolicy_settings.py::test_a_preset_gives_way_to_every_key_that_a_configuration_gives",
    ),
    Mutation(
        "a model's own tokenizer is not looked at",
        "training/base_model.py",
        "compare_tokenizers(spec, tokenizer, parent)",
        "pass",
        "tests/unit/data/test_tokenizers.py::test_a_base_model_with_enough_rows_and_other_ids_is_refused",
    ),
    Mutation(
        "what lies under the mask reaches the softmax",
        "objectives.py",
        "if mask is not None:",
        "if False:",
        "tests/unit/test_objectives.py::test_nothing_under_the_mask_reaches_the_single_steps_gradient",
    ),
    Mutation(
        "mixture weights change places",
        "sampling/draw.py",
        "torch.lerp(q, teacher.exp(), alpha)",
        "torch.lerp(teacher.exp(), q, alpha)",
        "tests/unit/sampling/test_sampling.py::test_frequencies_follow_the_mixture",
    ),
    Mutation(
        "coins are the numbers that draw tokens",
        "sampling/coins.py",
        "COINS = 2**43",
        "COINS = 0",
        "tests/unit/sampling/test_coins.py::test_coins_are_independent_of_the_numbers_that_draw_tokens",
    ),
    Mutation(
        "vLLM's seeds are those of the row's place, not of its id",
        "sampling/answerer.py",
        "counter=[0, 0, request.row, 0]",
        "counter=[0, 0, request.key[-1], 0]",
        "tests/unit/sampling/test_vllm_backend.py::test_seeds_depend_on_seed_step_and_row_and_nothing_else",
    ),
    Mutation(
        "vLLM may draw padding of the embedding",
        "models/saving_cut.py",
        "values[:vocabulary] if",
        "values if",
        "tests/unit/sampling/test_vllm_backend.py::"
        "test_padding_of_the_vocabulary_is_cut_off_before_vllm_sees_the_weights",
    ),
    Mutation(
        "what vLLM drew is scored at another temperature",
        "training/vllm_rollouts.py",
        "head_of(student, how.vocabulary, how.sampling.temperature)",
        "head_of(student, how.vocabulary)",
        "tests/unit/training/test_vllm_rollouts.py::test_records_are_those_of_sampling_and_of_float64",
    ),
    Mutation(
        "weights are those of the model that drew the token",
        "sampling/scored.py",
        "teacher.gather(-1, at).exp(), alpha)",
        "teacher.gather(-1, at).exp(), 0.0)",
        "tests/unit/sampling/test_coins.py::test_wherever_the_coins_fall",
    ),
    Mutation(
        "rows that have ended are dropped before the teacher has read them",
        "sampling/unread.py",
        "            useful |= self.progress.lengths[self.rows] > self.position\n",
        "            pass\n",
        "tests/unit/sampling/test_coins.py::test_wherever_the_coins_fall",
    ),
    Mutation(
        "the teacher draws wherever it reads",
        "sampling/unread.py",
        "        return torch.where(self.heads[alive, t, None], teacher, self.student.logits(hidden))",
        "        return teacher",
        "tests/unit/sampling/test_coins.py::test_rows_do_not_depend_on_batches_order_or_what_is_recorded",
    ),
    Mutation(
        "prompts that are read in groups change places",
        "sampling/kv_cache.py",
        "torch.cat(states)[order.argsort()]",
        "torch.cat(states)",
        "tests/unit/sampling/test_kv_cache.py::test_groups_are_one_pass",
    ),
    Mutation(
        "finished rows stay in layers of all positions if others have a window",
        "sampling/kv_cache.py",
        "            if isinstance(layer, RoomyLayer):",
        "            if isinstance(layer, RoomyLayer) and self.croppable:",
        "tests/unit/sampling/test_one_shape.py::test_answers_stay",
    ),
    Mutation(
        "a row sees one column more than it has reached",
        "sampling/one_shape.py",
        "whole = distance >= 0",
        "whole = distance >= -1",
        "tests/unit/sampling/test_one_shape.py::test_a_row_in_the_place_of_a_longer_one",
    ),
    Mutation(
        "a new row goes on with the numbers of the old one",
        "sampling/refilled.py",
        "self.rows, self.uniform[where] = self.rows.index_copy(0, where, rows), numbers",
        "self.rows = self.rows.index_copy(0, where, rows)",
        "tests/unit/sampling/test_one_shape.py::test_answers_stay",
    ),
    Mutation(
        "results of a graph are overwritten by its next run",
        "sampling/cuda_graphs.py",
        "return self.steps[name](tokens, columns).clone()",
        "return self.steps[name](tokens, columns)",
        "tests/unit/sampling/test_one_shape.py::test_captured_steps_give_the_same_answers",
    ),
    Mutation(
        "the teacher's end is not read as the student's",
        "models/tiled_loss.py",
        "result[..., first], result[..., second] = logits[..., second], logits[..., first]",
        "",
        "tests/unit/sampling/test_two_prompts.py::test_recorded_values_are_those_of_whole_passes",
    ),
    Mutation(
        "tensors that are missing are made up",
        "models/weights.py",
        '"missing": missing, ',
        "",
        "tests/unit/models/test_weights.py::test_tensors_are_named_and_counted",
    ),
    Mutation(
        "bins count alike, however full",
        "evaluation/calibration.py",
        "return float(np.abs(gaps).sum() / len(right))",
        "return float(np.abs(gaps).sum() / bins)",
        "tests/unit/evaluation/test_calibration.py::test_ece_of_constructed_predictions_is_exact",
    ),
    Mutation(
        "the raw confidence is normalised",
        "evaluation/calibration.py",
        '"raw": np.exp(logprobs.max(1))',
        '"raw": normalised(logprobs).max(1)',
        "tests/unit/evaluation/test_calibration.py::test_both_definitions_of_the_confidence",
    ),
    Mutation(
        "a word's first token is its probability",
        "evaluation/calibration.py",
        "numbers.double().sum()",
        "numbers.double()[0]",
        "tests/unit/evaluation/test_calibration.py::test_words_against_one_row_at_a_time",
    ),
    Mutation(
        "the swapped order is not undone",
        "evaluation/judge.py",
        '"response": [a[0], b[1]]',
        '"response": [a[0], b[0]]',
        "tests/unit/evaluation/test_judge.py::test_the_stand_in_says_that_it_is_one",
    ),
    Mutation(
        "ours is always on the left",
        "evaluation/human_page.py",
        ".randrange(2)",
        ".randrange(1)",
        "tests/unit/evaluation/test_human.py::test_the_page_is_one_blind_file",
    ),
    Mutation(
        "a text can end the page's script",
        "evaluation/human_page.py",
        '.replace("<", "\\\\u003c")',
        "",
        "tests/unit/evaluation/test_human.py::test_the_page_is_one_blind_file",
    ),
    Mutation(
        "percent are taken for shares",
        "publish/figures/bars.py",
        'low, high = comparison["intervals"][outcome]',
        'low, high = (100 * bound for bound in comparison["intervals"][outcome])',
        "tests/unit/publish/test_drawings.py::test_human_intervals_are_drawn_where_they_are",
    ),
    Mutation(
        "any loss is set beside the published one",
        "publish/tables/calibration_diversity.py",
        'set(loss_rows["metric"]) <= {PAPERS_LOSS}',
        "True",
        "tests/unit/publish/test_published_numbers.py::test_a_loss_is_compared_with_the_published_one_only_where_it_is_the_same",
    ),
    Mutation(
        "a lead of one training is bold",
        "publish/tables/main_cells.py",
        "if not trainings:",
        "if True:",
        "tests/unit/publish/test_table_statistics.py::test_a_lead_of_one_training_alone_is_not_bold",
    ),
    Mutation(
        "replies are kept as they come",
        "redact.py",
        "if not key or not text:",
        "if True:",
        "tests/unit/evaluation/test_judge.py::test_a_reply_that_repeats_the_key_is_kept_without_it",
    ),
    Mutation(
        "only the key itself is blanked",
        "redact.py",
        'forms = {key, quote(key, safe=""), raw.hex()}',
        "return {key.lower()}",
        "tests/unit/evaluation/test_judge.py::test_the_key_is_kept_in_no_form",
    ),
    Mutation(
        "a label is markup in the report",
        "publish/report_texts.py",
        'return re.sub(r"([^\\w\\s]|_)", r"\\\\\\1", text.replace("\\0", ""))',
        "return text",
        "tests/unit/publish/test_report_texts.py::test_text_of_users_is_no_markup",
    ),
    Mutation(
        "each student draws other prompts",
        "evaluation/accumulated_error.py",
        "np.random.Philox(key=[seed, prompts])",
        "np.random.Philox(key=[seed, int(student.kl.sum() * 1e3)])",
        "tests/unit/evaluation/test_exposure_bias.py::test_draws_of_two_students_are_of_the_same_prompts",
    ),
    Mutation(
        "a name twice in a list counts once",
        "config/checks.py",
        "    check_lists(config, where)\n",
        "",
        "tests/unit/config/test_experiment.py::test_nothing_is_named_twice",
    ),
    Mutation(
        "a test row without a reference is kept",
        "data/test_set.py",
        "if not any(output.strip() for output in row.outputs):",
        "if False:",
        "tests/unit/data/test_prepare.py::test_rows_without_a_reference_eos_in_prompts_and_other_scripts",
    ),
    Mutation(
        "lengths need not fit their tokens",
        "data/rows.py",
        "starts[-1] == len(tokens)",
        "True",
        "tests/unit/data/test_prepare.py::test_damaged_arrays_are_one_line",
    ),
    Mutation(
        "an update waits for what it sends to a GPU",
        "training/mini_batch.py",
        "return moved(values[rows][valid], self.device)",
        "return values[rows][valid].to(self.device)",
        "tests/unit/training/test_no_waiting.py::test_an_update_reads_nothing_back",
    ),
    Mutation(
        "random numbers of a batch stay on the CPU",
        "sampling/sample.py",
        "torch.from_numpy(numbers(chunk)).to(device)",
        "torch.from_numpy(numbers(chunk))",
        "tests/unit/training/test_no_waiting.py::test_sampling_from_a_mixture",
    ),
    Mutation(
        "a frozen model drops inputs of its adapter",
        "models/adapters.py",
        "    model.train(model.training)\n",
        "",
        "tests/unit/models/test_adapters.py::test_a_saved_adapter_is_the_same_again",
    ),
    Mutation(
        "a merged model is not compared",
        "models/adapters.py",
        "if not share <= tolerance:",
        "if False:",
        "tests/unit/models/test_adapters.py::test_a_merged_model_with_other_logits_is_refused",
    ),
    Mutation(
        "the teacher is the bare base model",
        "training/adapted.py",
        "load_adapter(model, folder / ADAPTER)",
        "pass",
        "tests/unit/training/test_adapted.py::test_each_model_loads_its_own_adapter_on_one_base",
    ),
    Mutation(
        "the overlap is that of the student's likeliest tokens with themselves",
        "training/diagnosis.py",
        'on_set(*both, "intersection", TOP)',
        'on_set(*both, "student_topk", TOP)',
        f"{DIAGNOSIS}::test_values_equal_loops_over_tokens",
    ),
    Mutation(
        "a token is repeated if its own 4-gram is",
        "training/diagnosis.py",
        "        marks[end] = gram in seen\n        seen.add(gram)\n",
        "        seen.add(gram)\n        marks[end] = gram in seen\n",
        f"{DIAGNOSIS}::test_repeated_tokens_are_what_the_repetition_rate_counts",
    ),
    Mutation(
        "effective samples leave out the token weights",
        "training/credit.py",
        "weights if factors is None else weights * factors",
        "weights",
        f"{DIAGNOSIS}::test_effective_samples_of_every_method",
    ),
    Mutation(
        "the gradient's variance takes micro-batches for equally large",
        "runtime/gradient_variance.py",
        "math.fsum(s / n for s, n in zip(squares, rows, strict=True))",
        "math.fsum(squares) * len(rows) / sum(rows)",
        "tests/unit/runtime/test_gradient_variance.py::test_unbiased_over_all_draws",
    ),
    Mutation(
        "squared gradients are those of the scaled loss",
        "runtime/gradient_variance.py",
        "/ (rows * scale**2)",
        "/ rows",
        "tests/unit/runtime/test_gradient_variance.py::test_of_a_whole_update_under_every_stage",
    ),
    Mutation(
        "the figure draws who ended as who was truncated",
        "publish/figures/diagnosis.py",
        "lambda finished: 1 - finished",
        "lambda finished: finished",
        "tests/unit/publish/test_diagnosis_figure.py::test_each_panel_shows_what_its_name_says",
    ),
    Mutation(
        "checkpoints hold the frozen weights",
        "runtime/saving.py",
        "if weight.requires_grad else adapted)",
        "if weight.requires_grad else False)",
        "tests/unit/training/test_adapted.py::test_resuming_is_exact_and_checkpoints_hold_only_the_adapter",
    ),
    Mutation(
        "exact match of two files is taken for that of two trainings",
        "publish/results.py",
        "return frame[~twice] if twice.any() else frame",
        "return frame",
        "tests/unit/evaluation/test_metrics.py::test_exact_match_is_once_in_the_frame",
    ),
    Mutation(
        "a response without a choice takes the first option",
        "evaluation/choice.py",
        "return min(found)[2] if found else None",
        "return min(found)[2] if found else next(iter(options))",
        "tests/unit/evaluation/test_metrics.py::test_the_file_of_choice_counts_what_is_unanswered",
    ),
    Mutation(
        "replaced tokens are drawn with the number that proposed them",
        "sampling/sample.py",
        "uniforms(seed + REPLACEMENTS, step",
        "uniforms(seed, step",
        f"{SAMPLERS}::test_every_replaced_token_follows_the_rule",
    ),
    Mutation(
        "replaced tokens are recorded as draws of the student",
        "sampling/draw.py",
        "return chosen, replaced, student.masked_fill(~inside, 0.0) + outside * teacher",
        "return chosen, replaced, student",
        f"{AHEAD}::test_importance_of_tokens_that_the_teacher_may_have_replaced",
    ),
    Mutation(
        "what top-p leaves is recorded as the whole distribution",
        "sampling/draw.py",
        "student = logits[0].log_softmax(-1)",
        "student = proposal.log_softmax(-1)",
        f"{SAMPLERS}::test_the_teacher_replaces_what_top_p_proposes",
    ),
    Mutation(
        "a response that was ended early counts as finished",
        "sampling/response.py",
        "ended and not cut[i], record_of, cut[i]",
        "ended, record_of, cut[i]",
        f"{SAMPLERS}::test_a_response_ends_where_the_models_have_drifted_apart",
    ),
    Mutation(
        "an early end is made one disagreement late",
        "sampling/early_end.py",
        "self.counts[rows] >= s.events",
        "self.counts[rows] > s.events",
        f"{SAMPLERS}::test_a_response_ends_where_the_models_have_drifted_apart",
    ),
    Mutation(
        "disagreements under the mask count",
        "training/early_end_weights.py",
        "(drifted * rollouts.mask)",
        "drifted",
        f"{CATALOGUE}::test_the_loss_and_its_gradient",
    ),
    Mutation(
        "the weights of drift leave out their base",
        "training/early_end_weights.py",
        "(early_end.base + left)",
        "left",
        f"{AHEAD}::test_weights_fall_with_each_disagreement",
    ),
    Mutation(
        "a lag counts one collection too few",
        "training/drawn_ahead.py",
        "min(collection + self.lag, self.collections - 1)",
        "min(collection + self.lag - 1, self.collections - 1)",
        f"{AHEAD}::test_a_collection_is_drawn_by_the_student_of_so_many_collections_ago",
    ),
    Mutation(
        "checkpoints forget what waits",
        "training/drawn_ahead.py",
        "return [vars(rollouts) for rollouts in self.waiting]",
        "return []",
        f"{AHEAD}::test_a_stopped_run_resumes_exactly",
    ),
    Mutation(
        "a damaged collection is taken",
        "training/drawn_ahead.py",
        "if not path.exists() or sha256(path) != self._index().get(path.name):",
        "if not path.exists():",
        f"{AHEAD}::test_collections_that_are_damaged_or_gone",
    ),
]


def turns_red(mutation: Mutation, folder: Path) -> bool:
    """Whether the mutation's test fails on the mutated copy in `folder`; the file is put back."""
    path = folder / "minillm" / mutation.file
    original = path.read_text()
    if original.count(mutation.old) != 1:
        sys.exit(
            f"{mutation.name}: its text is not there exactly once in {mutation.file}; "
            "bring tests/mutations.py up to date"
        )
    path.write_text(original.replace(mutation.old, mutation.new))
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutation.test]
    try:
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode == 1
    finally:
        path.write_text(original)


def main(names: list[str]) -> int:
    """The mutations of these names, or all; 1 where one survives."""
    survivors = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repo"
        ignored = shutil.ignore_patterns(".git", ".venv", "results", ".snakemake", "__pycache__", ".*_cache")
        shutil.copytree(REPO, folder, ignore=ignored)
        for mutation in MUTATIONS:
            if names and mutation.name not in names:
                continue
            red = turns_red(mutation, folder)
            print(f"{'red' if red else 'SURVIVES':<9} {mutation.name}: {mutation.test}", flush=True)
            survivors += [] if red else [mutation.name]
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
