"""sentence-transformers' trainer, made exact: whole checkpoints, adapters that reload, the mean over examples."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback

from ebr.data.files.write import as_os_error, reason_of
from ebr.model.adapters.attach import load_adapter_weights
from ebr.model.adapters.files import ADAPTER_WEIGHTS
from ebr.model.compute.serving import as_loaded, as_served
from ebr.model.encoder.encoder import quiet_files
from ebr.training.batches.sampling import EpochBatches
from ebr.training.loop import checkpoints
from ebr.training.loop.anomalies import NO_BEST, NO_CHECKPOINT
from ebr.training.loop.journal import EpochSaver, GracefulStop, StepJournal
from ebr.training.loop.layouts import PARTIAL
from ebr.training.loop.new_rows import NewRows
from ebr.training.loop.recovery import Recovery
from ebr.training.loop.watch import TrainingWatch
from ebr.training.resources.processes import Processes

Evaluate = Callable[[SentenceTransformer, int], dict[str, float]]
"""(model, optimiser step) → metrics by name; 'ndcg@10' among them."""


class EmbeddingTrainer(SentenceTransformerTrainer):
    """sentence-transformers' trainer, with checkpoints that are whole or do not count, adapters that reload exactly, and
    gradients that are the mean over examples however they are dealt to batches.
    """

    def __init__(
        self,
        *,
        run_record: Mapping[str, Any],
        checkpoints_kept: int,
        journal: StepJournal,
        epoch_saver: EpochSaver,
        graceful_stop: GracefulStop,
        processes: Processes,
        recovery: Recovery,
        watch: TrainingWatch,
        sampler: EpochBatches | None,
        new_rows: NewRows | None,
        callbacks: Sequence[TrainerCallback],
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        self.run_record = run_record
        self.checkpoints_kept = checkpoints_kept
        self.journal = journal
        self.epoch_saver = epoch_saver
        self.graceful_stop = graceful_stop
        self.processes = processes
        self.recovery = recovery
        self.watch = watch
        self.sampler = sampler
        self.new_rows = new_rows
        self._bounds = torch.zeros(3, dtype=torch.float64)  # since the last log, by steps: floor, chance, and how many steps
        self._best: tuple[int, list[tuple[torch.Tensor, torch.Tensor]]] | None = None
        self._model_failure: OSError | None = None
        super().__init__(callbacks=[*callbacks, watch, journal, epoch_saver, graceful_stop], **kwargs)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card: making one encodes rows before training begins."""

    # ------------------------------------------------------------ rows of new tokens

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The stock one; under it the rows of new tokens learn at their own rate."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new and self.new_rows is not None:
            self.new_rows.learn_at_own_rate(optimizer)
        return optimizer

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """The stock ones, without the rows of new tokens, or the table that they are rows of."""
        decayed: list[str] = super().get_decay_parameter_names(model)
        if self.new_rows is None:
            return decayed
        own = {name for name, weight in model.named_parameters() if weight is self.new_rows.table}
        return [name for name in decayed if name not in own]

    # ------------------------------------------------------------ every record, once an epoch

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches dealt to the processes in turn; the last round is filled up from the first, so that none waits for another.

        The stock way leaves out what does not make a whole round.
        """
        self.accelerator.even_batches = self.sampler is None  # ours deals rounds that are whole
        loader = self._build_dataloader(self.train_dataset, self.args.train_batch_size, dataset_kind="train")
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        self._train_dataloader = prepared
        return prepared

    def get_batch_sampler(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Ours, where there is one, for the training rows; the stock one for all else."""
        if self.sampler is not None and dataset is self.train_dataset:
            return self.sampler
        return super().get_batch_sampler(dataset, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        # A run that is resumed from its last checkpoint has no step left; the stock way takes one more.
        if self.state.global_step >= self.state.max_steps or self._patience_is_spent():
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _patience_is_spent(self) -> bool:
        stoppers = [callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStoppingCallback)]
        return any(stopper.early_stopping_patience_counter >= stopper.early_stopping_patience for stopper in stoppers)

    # ------------------------------------------------------------ the mean over examples

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The batches of one optimiser step; how many examples they hold together is what each is weighed by."""
        batches, n_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = sum(len(batch["label"]) for batch in batches)
        # Rounds of ours may differ by a row between the processes, whose gradients are averaged as equals.
        self._examples_in_step = self.processes.mean(torch.tensor([float(own)]))[0].item() if self.sampler else own
        return batches, n_items

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """The batch's mean loss; in training, weighed so that a step is the mean over its examples.

        The trainer averages over the batches of a step, of which the last of an epoch may be short.
        """
        n_examples = len(inputs["label"])
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if return_outputs:
            return loss
        return loss * (n_examples * self.current_gradient_accumulation_steps / self._examples_in_step)

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[Any], Any]:
        """The batch as Collator made it, which the loss alone understands."""
        return [inputs["batch"]], inputs["label"]

    def override_model_in_loss(self, loss: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
        """The loss keeps the bare model: gradients are averaged once a step, below, not as each micro-batch makes them."""
        return loss

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ANN401
        """One batch forward and backward, done again in smaller micro-batches when memory ran out; its loss noted."""
        step = super().training_step
        loss = self.recovery.run(lambda: step(model, inputs, num_items_in_batch), inputs["batch"])
        self.journal.add(loss)
        if bounds := self.loss.bounds:
            share = len(inputs["batch"].rows) / self._examples_in_step  # as its loss is weighed
            self._bounds += share * torch.tensor([bounds.floor, bounds.chance, 1.0], dtype=torch.float64)
        if self.accelerator.sync_gradients:
            self.processes.average_gradients(self.model.parameters())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The figures, the training loss beside its bounds: the mean of them over the same examples of every process."""
        if "loss" in logs and self._bounds.any():
            floor, chance, n_steps = self.processes.mean(self._bounds).tolist()
            logs = {**logs, "loss_floor": floor / n_steps, "loss_chance": chance / n_steps}
            self._bounds.zero_()
        super().log(logs, start_time)

    # ------------------------------------------------------------ checkpoints

    def _get_output_dir(self, trial: object) -> str:
        return str(Path(self.args.output_dir) / PARTIAL)

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        folder, step = Path(self.args.output_dir), self.state.global_step
        epoch, self.epoch_saver.due = self.epoch_saver.due, None
        name = checkpoints.epoch_name(epoch) if epoch else checkpoints.step_name(step)
        self.journal.write()
        failure = self._written_aside(model, trial)
        # Each process writes its own random state; without one of them a checkpoint is not whole.
        if not self.processes.any(failure is not None) and self.processes.is_main:
            aside = folder / PARTIAL / checkpoints.step_name(step)
            failure = _failure(lambda: checkpoints.put_in_place(aside, folder / name, self.run_record, step))
        is_lost = self.processes.any(failure is not None)
        self._keep_best(step, is_lost=is_lost)
        if self.processes.is_main:
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
            if is_lost:
                self._do_without(name, failure)
            else:
                checkpoints.keep_newest(folder, self.checkpoints_kept, self.state.best_global_step)
        self.processes.wait()

    def _written_aside(self, model: torch.nn.Module, trial: object) -> OSError | None:
        """Write a checkpoint under PARTIAL; returns what kept it from being whole."""
        save = super()._save_checkpoint
        self._model_failure = None
        with quiet_files(), as_loaded(self.model):
            failure = _failure(lambda: save(model, trial))
        return self._model_failure or failure

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What fails here is told in _written_aside: under early stopping the other processes wait behind it for this one."""
        save = super().save_model
        self._model_failure = _failure(lambda: save(output_dir, _internal_call))
        with suppress(OSError):
            (Path(output_dir or self.args.output_dir) / "README.md").unlink()  # the base's card, which is of another model

    def _do_without(self, name: str, failure: OSError | None) -> None:
        """A checkpoint that could not be written ends no run; no older one makes room for it."""
        why = reason_of(failure) if failure else "in another process"
        self.watch.unwritten(NO_CHECKPOINT, f"{name} could not be written ({why}); the older ones stay, and the run goes on")

    def _keep_best(self, step: int, *, is_lost: bool) -> None:
        """Early stopping goes back to the best weights: without their checkpoint, they stay in memory."""
        if step == self.state.best_global_step:
            trained = [weight for weight in self.model.parameters() if weight.requires_grad]
            self._best = (step, [(weight, weight.detach().to("cpu", copy=True)) for weight in trained]) if is_lost else None

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        if not (Path(checkpoint_path) / ADAPTER_WEIGHTS).is_file():
            with quiet_files():
                super()._load_from_checkpoint(checkpoint_path)
            return
        # The stock way loads the base again, unquantised, and copies what fits.
        load_adapter_weights(self.model, Path(checkpoint_path))

    def _load_best_model(self) -> None:
        """Left to load_best: the stock way logs a failure, and goes on with the last weights."""

    def load_best(self) -> bool:
        """Go back to the weights of the best step; False where neither a checkpoint nor memory has them: the last ones stay."""
        step = self.state.best_global_step
        if self._best and self._best[0] == step:
            for weight, best in self._best[1]:
                weight.data.copy_(best)
            return True
        checkpoint = checkpoints.checkpoint_at(Path(self.args.output_dir), step)
        if checkpoint is None:
            what = f"the weights of step {step}, the best, are in no checkpoint; those of the last step were kept"
            self.watch.unwritten(NO_BEST, what)
            return False
        self._load_from_checkpoint(str(checkpoint))
        return True


def _failure(write: Callable[[], None]) -> OSError | None:
    """What kept something from being written; None = nothing did. Any other error is raised."""
    try:
        write()
    except Exception as error:
        failure = as_os_error(error)
        if failure is None:
            raise
        return failure
    return None


class RetrievalEvaluator(SentenceEvaluator):
    """Hands the trainer's evaluations to a plain function."""

    def __init__(self, evaluate: Evaluate) -> None:
        super().__init__()
        self.evaluate = evaluate

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Metrics by name."""
        with as_served(model):
            return self.evaluate(model, steps)


@contextmanager
def evaluation_folder(work: Path) -> Iterator[None]:
    """The folder that the stock trainer makes at each evaluation, for tables that are not written here.

    It is there while the block runs: a disk that has filled up meanwhile would not take it, and end the run.
    """
    folder = work / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # somebody's own folder of that name
            folder.rmdir()
