"""What runs a training loop: processes, DeepSpeed, exact checkpoints, signals, metrics and progress.

A loop sees only steps: `Engine.update(parts, loss)` makes one optimizer step from this process's parts,
`Engine.save` saves everything that is needed to resume (weights, optimizer, random states of every rank, the
loop's own state), and `Engine.resume` loads the newest complete checkpoint.  Resuming is exact: the same
steps with the same numbers as without the interruption.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import PreTrainedModel

from minillm.config.launch import Launch
from minillm.config.onpolicy import OnPolicy
from minillm.config.sections import Training
from minillm.data.batching import least_padding
from minillm.errors import UserError
from minillm.models import compiling
from minillm.models.adapters import is_adapted
from minillm.models.head import keep_head
from minillm.models.loading import attention, decoder_blocks, without_dropout
from minillm.runtime import checkpoints, precisions, saving, state, trust
from minillm.runtime.gradient_variance import GradientVariance
from minillm.runtime.optimizer import fix_universal, parameter_groups
from minillm.runtime.processes import World, seed_all
from minillm.runtime.schedule import learning_rate, share
from minillm.runtime.skipped import SkippedSteps
from minillm.runtime.universal import universal

METRICS = "metrics.jsonl"
STATE = "state.safetensors"
T = TypeVar("T")
# The loss of a micro-batch, and by name what is logged with it.
Losses = tuple[torch.Tensor, dict[str, torch.Tensor]]


class Engine:
    """A model under DeepSpeed, and its run's files."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: Training | OnPolicy,
        launch: Launch,
        world: World,
        precision: str,
        folder: Path,
        steps: int,
        out: Path | None = None,
    ) -> None:
        if world.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Imported only here: it takes seconds, reads DS_ACCELERATOR on import, and sampling does not need it.
        import deepspeed

        if world.device.type == "cpu":
            # gloo does the sums.  DeepSpeed's own kernel for one host is compiled on first use under a lock
            # file; a job killed meanwhile leaves it, and every later job of the user waits for it forever.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        precisions.check(precision, deepspeed.accelerator.get_accelerator())
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        self.settings, self.launch, self.world = settings, launch, world
        # `out`: where the model will be.
        self.folder, self.steps, self.out = folder, steps, out
        self.share = share(settings.batch, world.size)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with trust.only_ours():
            folder.mkdir(exist_ok=True)
        if warning := precisions.remark(precision, world.device):
            self.say(warning)
        saved = self.checkpoint = checkpoints.newest(folder, world, self.say)
        if saved:
            checkpoints.check_resumable(saved, launch.zero, world)
        # Under ZeRO 0 every process holds everything, and any number of them loads it as it is.
        self._universal = saved is not None and saved.processes != world.size and saved.zero > 0
        self._precision = {
            "bf16": {"enabled": precision == "bf16"},
            # For GPUs without bf16 (V100): DeepSpeed searches for a loss scale that does not overflow and
            # skips the steps that do.
            **(
                {"fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}}
                if precision == "fp16"
                else {}
            ),
        }
        self.deepspeed_config = self._config()
        self.checkpoint_bytes = saving.checkpoint_bytes(model, launch.zero)
        saving.announce(self.checkpoint_bytes, folder, world, self.say)
        self.step = 0
        self.seconds = 0.0
        # Bytes of metrics.jsonl when the checkpoint was saved.
        self.logged = 0
        self._since = self._saved = time.monotonic()
        self._stop = False
        self.training_mode = settings.dropout or launch.gradient_checkpointing
        if launch.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            if not settings.dropout:
                without_dropout(model)
        groups = parameter_groups(model, settings.weight_decay)
        self._decays = [group["weight_decay"] for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=self.deepspeed_config, dist_init_required=False
        )
        self.model: PreTrainedModel = self.engine.module
        self.skipped = SkippedSteps(self.engine, steps)
        self.variance = GradientVariance(self.engine, world)
        # All models that updates run.
        self._computing = [self.model]
        self._compiled = self._blocks(self.model) if launch.zero < 3 else []
        # Engines whose weights are sharded.
        self._sharded = [self.engine] if launch.zero == 3 else []

    def _template(self, zero: int) -> dict[str, Any]:
        template = files("minillm.runtime") / "deepspeed" / f"zero{zero}.json"
        values: dict[str, Any] = json.loads(template.read_text(encoding="utf-8"))
        return values

    def _config(self) -> dict[str, Any]:
        values = self._template(self.launch.zero)
        if self.launch.offload and self.launch.zero >= 2:
            values["zero_optimization"]["offload_optimizer"] = {
                "device": "cpu",
                "pin_memory": torch.cuda.is_available(),
            }
        return values | {
            "train_batch_size": self.settings.batch,
            # `update` itself tells DeepSpeed where a step ends.
            "train_micro_batch_size_per_gpu": self.share,
            "gradient_clipping": self.settings.clip_norm,
            **self._precision,
            "zero_allow_untested_optimizer": True,
            # torch's AdamW even if the optimizer is offloaded.
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
            **({"checkpoint": {"load_universal": True}} if self._universal else {}),
        }

    def frozen(self, model: PreTrainedModel, shared: bool = True) -> PreTrainedModel:
        """`model`, which is not trained, on this device; sharded over the ranks with `shard_teacher`.

        Whole on each rank if it must not be `shared` by them.

        A forward pass then gathers layer after layer from all ranks, so all ranks must make equally many
        passes; `whole` gathers everything at once.  Every rank keeps a copy of the output matrix
        (models.head_of), which is also used outside forward passes.
        """
        self._computing.append(model)
        if not (shared and self.launch.shard_teacher) or self.world.size == 1:
            self._compiled += self._blocks(model)
            return torch.nn.Module.to(model, self.world.device)
        import deepspeed

        keep_head(model, self.world.device)

        config = (
            self._template(3)
            | self._precision
            | {"train_micro_batch_size_per_gpu": 1, "steps_per_print": 10**9}
        )
        engine, *_ = deepspeed.initialize(model=model, config=config, dist_init_required=False)
        self._sharded.append(engine)
        sharded: PreTrainedModel = engine.module
        return sharded

    def _blocks(self, model: PreTrainedModel) -> compiling.Blocks:
        """What is compiled of an unsharded model; sharded weights come by hooks, which no program runs.

        On a CPU torch's own attention is far slower in compiled blocks than outside (docs/performance.md).
        """
        pays = self.world.device.type == "cuda" or self.launch.attention == "eager"
        return compiling.compiled(decoder_blocks(model)) if self.launch.compile and pays else []

    def mine(self, *kinds: Sequence[T], length: Callable[[T], int]) -> list[list[T]]:
        """This rank's micro-batches of a global batch, grouped by similar length (batching.least_padding).

        Every rank's pass waits for all others', so all get equally many micro-batches with equally many rows
        of each kind: sorted by length, rows are dealt out one per rank and grouped alike on every rank.
        """
        size, rank = self.world.size, self.world.rank
        dealt: list[Sequence[T]] = []
        for kind in kinds:
            ordered = sorted(kind, key=length)
            dealt += [ordered[i : i + size] for i in range(0, len(ordered), size)]
        parts = least_padding(
            dealt, lambda rows: length(rows[-1]), self.launch.micro_batch, self.launch.micro_tokens
        )
        return [[rows[rank] for rows in part] for part in parts]

    def update(
        self,
        parts: Sequence[T],
        loss: Callable[[T], Losses],
        rows: Sequence[object] = (),
        sizes: Sequence[int] = (),
    ) -> dict[str, torch.Tensor]:
        """One optimizer step from this rank's micro-batches; all ranks' losses must sum to the batch's loss.

        Returns sums over this rank's micro-batches of the loss and of everything that `loss` returns with
        it.  They stay on the device; call `summed` on those that are looked at.  Raises UserError if
        gradients are NaN or infinite several steps in a row; it names `rows`, the ids of the batch.  `sizes`,
        the rows of each micro-batch: then `summed` also has the gradient's variance, if that is asked for.
        """
        rate = learning_rate(self.settings, self.step, self.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.train(self.training_mode)
        sums: dict[str, torch.Tensor] = {}
        self.variance.begin()
        watched = self.launch.gradient_variance and self._logged(self.step + 1) and len(sizes) > 0
        with attention(self._computing, self.launch.attention), compiling.in_place(self._compiled):
            for place, part in enumerate(parts):
                # DeepSpeed's own count assumes equally many micro-batches at every step.
                self.engine.set_gradient_accumulation_boundary(place == len(parts) - 1)
                value, terms = loss(part)
                # DeepSpeed averages over ranks, but these losses are parts of one sum.
                with self.variance.of(sizes[place]) if watched else nullcontext():
                    self.engine.backward(value * self.world.size)
                self._optimizer_step(rows)
                for name, number in {"loss": value.detach(), **terms}.items():
                    sums[name] = sums[name] + number if name in sums else number
        self.engine.eval()
        self.step += 1
        self.world.at(f"step {self.step}")
        self.skipped.check(self.step, rows, look=self.logs)
        return sums

    def _optimizer_step(self, rows: Sequence[object]) -> None:
        """DeepSpeed's step; its error for a loss scale that cannot fall further is a line on every rank."""
        try:
            self.engine.step()
        except Exception as error:
            if "loss scale" not in str(error):
                raise
            raise self.skipped.error(self.step + 1, rows) from None

    def summed(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """What `update` returned, summed over the ranks, with learning rate and unclipped gradient norm.

        Every rank must call it.
        """
        values = torch.stack([value.double() for value in sums.values()]).tolist()
        totals = [math.fsum(parts) for parts in zip(*self.world.gather(values), strict=True)]
        norm = self.engine.get_global_grad_norm()
        numbers = dict(zip(sums, totals, strict=True)) | {
            "lr": learning_rate(self.settings, self.step - 1, self.steps),
            "grad_norm": float(norm) if norm is not None else math.nan,
        }
        numbers |= self.variance.estimate(numbers["grad_norm"])
        skipped = self.skipped.total()
        if skipped or self.engine.fp16_enabled():
            numbers["skipped_steps"] = float(skipped)
        return numbers

    @property
    def logs(self) -> bool:
        """Whether the step just made is to be logged."""
        return self._logged(self.step)

    def _logged(self, step: int) -> bool:
        return step % self.launch.log_every == 0 or step == self.steps

    # --- checkpoints
    def save(self, loop: dict[str, Any]) -> None:
        """Save atomically all that is needed to resume; `loop` is the loop's own state (see state.write)."""
        # Counted before DeepSpeed saves the count.
        self.skipped.total()
        hashes: dict[str, str] = {}
        with checkpoints.saving(
            self.folder, self.step, self.launch.zero, self.checkpoint_bytes, self.world, hashes
        ) as partial:
            with (
                saving.hashing(self.engine, partial) as written,
                saving.without_weights(self.engine, self.launch.zero),
            ):
                self.engine.save_checkpoint(
                    str(partial),
                    tag="deepspeed",
                    client_state={"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}},
                    save_latest=False,
                    exclude_frozen_parameters=is_adapted(self.model),
                )
            hashes |= written
            name = f"random-{self.world.rank}.safetensors"
            hashes[name] = state.write(partial / name, state.random_states())
            if self.world.rank == 0:
                log = self.folder / METRICS
                logged = log.stat().st_size if log.exists() else 0
                entry = {
                    "step": self.step,
                    "seconds": self.elapsed(),
                    "logged": logged,
                    "in_a_row": self.skipped.in_a_row,
                    "loop": loop,
                }
                hashes[STATE] = state.write(partial / STATE, entry)
        self._saved = time.monotonic()

    def save_due(self) -> bool:
        """Whether the step just made is to be saved, by steps or by time; the same on every rank.

        Every rank must call it: the time is that of rank 0.
        """
        if not self.launch.save_minutes:
            return self.step % self.launch.save_every == 0
        late = time.monotonic() - self._saved >= 60 * self.launch.save_minutes
        return bool(self.world.gather(late)[0])

    def resume(self) -> dict[str, Any] | None:
        """Load the newest complete checkpoint and return the loop's state, or None if there is no checkpoint.

        Exact with the number of processes that saved it.  With another number, equal up to the order of sums,
        and dropout is drawn again.
        """
        saved = self.checkpoint
        if saved is None:
            return None
        tag = universal(saved, self.world, self.say) if self._universal else "deepspeed"
        # Not strict: weights that follow from others are not there (saving.without_weights).
        path, _ = self.engine.load_checkpoint(str(saved.folder), tag=tag, load_module_strict=False)
        if path is None:
            raise UserError(
                f"{saved.folder}: DeepSpeed cannot load it; delete this folder to resume from the one before"
            )
        entry = state.read(saved.folder / STATE)
        self.skipped.resumed(entry["in_a_row"])
        if saved.processes == self.world.size:
            state.restore_random_states(state.read(saved.folder / f"random-{self.world.rank}.safetensors"))
        else:
            seed_all(entry["step"] * 1000 + self.world.rank)
        if self._universal:
            fix_universal(self.engine.optimizer.optimizer, self._decays)
        else:
            saving.restore_weights(self.engine, saved.zero)
        self.step, self.seconds, self._since = entry["step"], entry["seconds"], time.monotonic()
        self.logged = entry["logged"]
        self.say(f"resumes from step {self.step} of {self.steps}")
        loop: dict[str, Any] = entry["loop"]
        return loop

    def elapsed(self) -> float:
        """Seconds of training so far, without interruptions."""
        return self.seconds + time.monotonic() - self._since

    def weights(self) -> dict[str, Any] | None:
        """The full weights, gathered under ZeRO-3 (every rank must call); None if the model holds them.

        Of a model with an adapter only its trained ones.
        """
        if self.launch.zero < 3:
            return None
        gathered = self.engine._zero3_consolidated_16bit_state_dict(
            exclude_frozen_parameters=is_adapted(self.model)
        )
        state: dict[str, Any] = gathered
        return state

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The full weights on every rank, frozen models' included, gathered once: for sampling and dev sets.

        Every rank must enter.  With sharded weights every forward pass gathers each layer from all ranks, and
        here the ranks make different numbers of passes: they would wait for each other forever.  Costs a copy
        of every model on each device.
        """
        from deepspeed.runtime.zero import unwrap_model_for_generation

        with ExitStack() as stack:
            for engine in self._sharded:
                stack.enter_context(unwrap_model_for_generation(engine))
            yield

    # --- interruptions
    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """SIGTERM and SIGUSR1 (Slurm's warning before the time limit) ask to save and stop after the step."""

        def ask(number: int, frame: object) -> None:
            self._stop = True

        previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def stop_if_asked(self, save: Callable[[], None]) -> None:
        """`save` and exit with status 143 if any rank got a signal."""
        if any(self.world.gather(self._stop)):
            save()
            self.say(
                f"stopped by a signal after step {self.step} of {self.steps}; "
                "run the same command again to resume"
            )
            raise SystemExit(143)

    # --- output to people
    def say(self, text: str) -> None:
        if self.world.rank == 0:
            tqdm.write(text)

    def progress(self, name: str) -> tqdm[Any]:
        """A progress bar with rate and remaining time; silent if the output is not a terminal."""
        return tqdm(
            total=self.steps,
            initial=self.step,
            desc=name,
            unit="step",
            disable=None if self.world.rank == 0 else True,
            dynamic_ncols=True,
        )
