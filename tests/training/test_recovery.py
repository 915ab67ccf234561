"""Out of memory: the step is done again in smaller micro-batches as if nothing had been, or the run says what to change."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertModel

from ebr.config import FinetuneConfig
from ebr.data.training.examples import Example
from ebr.data.training.text_table import TextTable
from ebr.errors import ModelError
from ebr.model.adapters.attach import train_every_weight
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.text_reader import TextReader
from ebr.training.batches import gradient_cache
from ebr.training.batches.collator import Batch, TextGroup
from ebr.training.batches.gradient_cache import GradientCache
from ebr.training.loop import recovery
from ebr.training.loop.fit import fine_tune, prepare_model
from ebr.training.loop.recovery import Recovery
from ebr.training.loss.objectives import InfoNCE, Targets

QUERIES = ["red shoe", "buy the blue lamp", "green cup", "a small book"]
POSITIVES = ["the red shoe", "blue lamp", "the small green cup, large", "book"]
NEGATIVES = ["the " * 60, "red " * 60]
"""Of the third query and of the last: 62 tokens each. All other texts have 3 to 8."""
TEXTS = [*QUERIES, *POSITIVES, *NEGATIVES]
OWNERS = [0, 1, 2, 3, 2, 3]
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
HOST = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
)
PYTHON = MemoryError()


@pytest.fixture(scope="module")
def bare(tiny_model):
    return load_encoder(tiny_model, device="cpu")


@pytest.fixture
def model(bare):
    """All of it trained, in float64 without dropout."""
    model = copy.deepcopy(bare).double().train()
    train_every_weight(model)
    set_dropout(model, 0.0)
    return model


def set_dropout(model, p):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = p


class Faulty:
    """A model's forward with injected failures; a pass is counted from 1, whether it is the first or the second of its texts.

    forward, backward: the passes that fail there. when: (texts, tokens) of a pass → whether it fails in its forward.
    """

    def __init__(self, model, error, *, forward=(), backward=(), when=lambda n_texts, n_tokens: False):
        self.inner, self.error, self.failing, self.backward, self.when = model.forward, error, forward, backward, when
        self.n_passes = 0
        model.forward = self

    def __call__(self, features, **options):
        self.n_passes += 1
        shape = features["input_ids"].shape
        if self.n_passes in self.failing or self.when(shape[0], shape.numel()):
            raise self.error
        output = self.inner(features, **options)
        if self.n_passes in self.backward:
            output["sentence_embedding"] = Failing.apply(output["sentence_embedding"], self.error)
        return output


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, error):
        ctx.error = error
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ctx.error


class Watch:
    """Says that the host's memory is nearly full as often as told."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def pressure(self):
        return bool(self.answers) and self.answers.pop(0)

    def words(self):
        return "9 of 10 GiB"


def spelling(name):
    return f"--{name}"


class Bench:
    """An embedder, its recovery, what was said, and steps over one batch of four rows: 10, 11, 12, 13."""

    def __init__(self, model, *, token_budget=256, memory=math.inf, watch=None, meets=False):
        self.model, self.lines = model, []
        reader = TextReader(model, "document", "")
        self.embedder = GradientCache(model, [{"query": reader, "document": reader}], token_budget, memory)
        group = TextGroup("document", 0, reader.prepare(TEXTS), np.arange(len(TEXTS)))
        self.batch = Batch([10, 11, 12, 13], (group,), np.arange(6), np.array(OWNERS), np.full(6, np.nan, np.float32))
        self.recovery = Recovery(
            self.embedder,
            watch or Watch(),
            query_of=dict(enumerate(QUERIES, start=10)).__getitem__,
            spelling=spelling,
            say=self.lines.append,
            meets=meets,
        )

    def plain(self):
        rows = self.embedder.embed(self.batch.groups)
        targets = Targets(torch.ones(4, 6, dtype=torch.bool), torch.tensor(OWNERS), torch.full((6,), math.nan))
        loss = InfoNCE(0.1)(rows[:4], rows[4:], targets)["contrastive_loss"]
        loss.backward()
        return loss.detach()

    def run(self):
        return self.recovery.run(self.plain, self.batch)

    def gradients(self):
        return {name: one.grad.clone() for name, one in self.model.named_parameters() if one.grad is not None}


@pytest.fixture
def undisturbed(model):
    """(loss, gradients) of one step."""
    bench = Bench(model)
    loss, found = bench.run(), bench.gradients()
    model.zero_grad()
    return loss, found


def assert_undisturbed(loss, found, undisturbed, times=1):
    wanted_loss, wanted = undisturbed
    assert loss.item() == pytest.approx(wanted_loss.item(), abs=1e-9)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        assert torch.allclose(found[name], times * gradient, rtol=1e-9, atol=1e-9), name


@pytest.fixture(autouse=True)
def few_passes(monkeypatch):
    """As few micro-batches as the budget allows: with 128 tokens, the two long texts, and the eight others."""
    monkeypatch.setattr(gradient_cache, "PASS_COST_CPU", 10_000)
    # Half a second in a process with torch in it.
    monkeypatch.setattr(recovery, "gc", SimpleNamespace(collect=lambda: None))


# ---------------------------------------------------------------- the step is done again


@pytest.mark.parametrize(
    ("error", "where"),
    [
        *((CUDA, where) for where in (dict(forward=[1]), dict(forward=[2]), dict(backward=[1]), dict(backward=[2]))),
        (HOST, dict(forward=[1])),
        (HOST, dict(backward=[2])),
        (PYTHON, dict(forward=[2])),
    ],
)
def test_failed_step_is_done_again_with_the_loss_and_gradients_of_an_undisturbed_one(model, undisturbed, error, where):
    bench = Bench(model, token_budget=128)
    Faulty(model, error, **where)
    assert_undisturbed(bench.run(), bench.gradients(), undisturbed)
    assert len(bench.recovery.events) == 1


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_failure_of_a_pass_that_is_computed_again_is_recovered_too(model, undisturbed, where):
    bench = Bench(model, token_budget=128, memory=0)
    bench.plain()
    model.zero_grad()
    count = Faulty(model, CUDA)
    bench.plain()
    model.zero_grad()
    n_passes = (count.n_passes + 1) // 2
    model.forward = count.inner
    Faulty(model, CUDA, **{where: [n_passes + 1]})  # the first that is computed again
    assert_undisturbed(bench.run(), bench.gradients(), undisturbed)
    assert len(bench.recovery.events) == 1


def test_gradients_of_earlier_batches_of_a_step_stay(model, undisturbed):
    bench = Bench(model, token_budget=128)
    bench.run()
    Faulty(model, CUDA, backward=[2])
    assert_undisturbed(bench.run(), bench.gradients(), undisturbed, times=2)


def test_micro_batch_halves_until_the_step_fits_and_stays_so(model, undisturbed):
    bench = Bench(model, token_budget=1024)
    # First all ten texts at the width of the longest, 620 tokens; then the two long ones, 124, until each goes alone.
    Faulty(model, CUDA, when=lambda n_texts, n_tokens: n_tokens > 100)
    assert_undisturbed(bench.run(), bench.gradients(), undisturbed)
    halved = ["1,024 → 512", "512 → 256", "256 → 128", "128 → 64"]
    assert bench.lines == [
        f"out of memory: micro-batch {sizes} tokens; the batch and its negatives stay as they are" for sizes in halved
    ]
    assert bench.recovery.events == bench.lines
    bench.run()
    assert (bench.embedder.token_budget, len(bench.lines)) == (64, 4)


def test_step_done_again_draws_the_random_numbers_of_the_first_time(model):
    set_dropout(model, 0.3)
    torch.manual_seed(5)
    smaller = Bench(model, token_budget=64)
    wanted, gradients = smaller.run(), smaller.gradients()
    behind = torch.get_rng_state()
    model.zero_grad()
    torch.manual_seed(5)
    bench = Bench(model, token_budget=128)
    Faulty(model, HOST, forward=[2])
    assert torch.equal(bench.run(), wanted)
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in bench.gradients().items())
    assert torch.equal(torch.get_rng_state(), behind)


def test_step_that_goes_well_says_nothing(model):
    bench = Bench(model)
    bench.run()
    assert bench.lines == bench.recovery.events == []


def test_other_errors_pass_through_untouched(model):
    bench, bug = Bench(model), RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    Faulty(model, bug, forward=[1])
    with pytest.raises(RuntimeError) as caught:
        bench.run()
    assert caught.value is bug
    assert bench.lines == []
    assert bench.embedder.token_budget == 256


# ---------------------------------------------------------------- a text that is too large


def assert_four_options_in_order(message):
    names = ("--train_batch_size", "--gradient_accumulation_steps", "--gradient_checkpointing", "--max_seq_length")
    places = [message.index(name) for name in names]
    assert places == sorted(places)


@pytest.mark.parametrize("error", [CUDA, HOST, PYTHON], ids=["cuda", "host", "python"])
def test_one_text_too_large_names_its_query_and_the_four_options(model, error):
    bench = Bench(model)
    Faulty(model, error, when=lambda n_texts, n_tokens: n_tokens >= 60)
    with pytest.raises(ModelError) as caught:
        bench.run()
    message = str(caught.value)
    assert message.startswith(
        "a text of 62 tokens does not fit in memory, even alone: a passage of the query 'green cup'; what helps"
    )
    assert_four_options_in_order(message)


def test_query_too_large_is_named_as_one(model):
    bench = Bench(model, token_budget=8)
    length = bench.batch.groups[0].prepared.lengths[1]
    Faulty(model, CUDA, when=lambda n_texts, n_tokens: (n_texts, n_tokens) == (1, length))
    with pytest.raises(ModelError, match=rf"a text of {length} tokens .*: the query 'buy the blue lamp'"):
        bench.run()


def test_one_text_too_large_for_its_backward_pass_is_named_too(model):
    bench = Bench(model, token_budget=64)  # the longest goes alone, and first
    bench.embedder.memory = 0
    Faulty(model, CUDA, backward=range(1, 100))
    with pytest.raises(ModelError, match="a passage of the query 'green cup'"):
        bench.run()


def test_one_text_that_fits_once_less_is_kept_beside_it_is_no_error(model, undisturbed):
    bench = Bench(model, token_budget=100)
    # The second long text fails beside the graph of the first.
    Faulty(model, CUDA, when=lambda n_texts, n_tokens: n_texts == 1 and bench.embedder._held > 0 and not bench.lines)
    assert_undisturbed(bench.run(), bench.gradients(), undisturbed)
    assert len(bench.lines) == 1


def test_micro_batches_as_small_as_they_get_end_with_the_options(model):
    bench = Bench(model, token_budget=128)
    Faulty(model, CUDA, when=lambda n_texts, n_tokens: n_texts > 1)
    with pytest.raises(ModelError, match="as small as they get") as caught:
        bench.run()
    assert_four_options_in_order(str(caught.value))


# ---------------------------------------------------------------- the host, and the others


def test_nearly_full_host_shrinks_the_micro_batch_before_the_step(model, undisturbed):
    bench = Bench(model, token_budget=256, watch=Watch(False, True, False))
    for _ in range(3):
        assert_undisturbed(bench.run(), bench.gradients(), undisturbed)
        model.zero_grad()
    why = "memory is nearly full (9 of 10 GiB)"
    assert bench.lines == [f"{why}: micro-batch 256 → 128 tokens; the batch and its negatives stay as they are"]


def test_nearly_full_host_is_no_reason_to_end_a_run_that_cannot_shrink(model, undisturbed):
    bench = Bench(model, token_budget=64, watch=Watch(True))
    assert_undisturbed(bench.run(), bench.gradients(), undisturbed)
    assert bench.lines == []


def test_one_of_several_processes_that_meet_cannot_do_a_step_again_by_itself(model):
    bench = Bench(model, meets=True)
    Faulty(model, CUDA, forward=[1])
    with pytest.raises(ModelError, match=r"--gather_negatives.*--micro_batch_tokens below 256"):
        bench.run()


# ---------------------------------------------------------------- a whole run


@pytest.fixture
def tuned(bare, tmp_path):
    """(adapter weights, record) of three steps of six pairs, without dropout."""

    def tune(name):
        config = FinetuneConfig(
            model_name="tiny", output_dir=tmp_path / name, finetune_type="lora", lora_dropout=0.0, max_steps=3, num_epochs=1,
            train_batch_size=6, learning_rate=1e-2, micro_batch_tokens=256, report_to=["none"], token_cache=False,
        )  # fmt: skip
        model = copy.deepcopy(bare)
        set_dropout(model, 0.0)
        prepare_model(model, config)
        train = [
            Example(f"buy {size} {thing}", (f"the {thing}, {size}",)) for size in ("red", "blue", "green") for thing in WORDS
        ]
        lines = []
        ids = TextTable.of(train).ids
        record = fine_tune(model, train, [], config, ids=ids, work=tmp_path / name, record={}, say=lines.append)
        return {name: one for name, one in model.named_parameters() if one.requires_grad}, record, lines

    return tune


WORDS = ["shoe", "shirt", "lamp", "cup", "book", "small shoe"]


def test_run_with_failures_in_its_middle_ends_with_the_weights_of_an_undisturbed_one(tuned, monkeypatch):
    wanted, calm, _ = tuned("calm")
    passes, whole = [], BertModel.forward

    def failing(self, *args, **kwargs):
        """The pass of the second step fails forward; two passes later, that of the third fails backward."""
        output = whole(self, *args, **kwargs)
        passes.append(torch.is_grad_enabled() and self.training)
        if passes[-1] and sum(passes) == 2:
            raise CUDA
        if passes[-1] and sum(passes) == 4:
            output.last_hidden_state = Failing.apply(output.last_hidden_state, HOST)
        return output

    monkeypatch.setattr(BertModel, "forward", failing)
    found, record, lines = tuned("disturbed")
    assert (calm.recoveries, record.n_steps) == ((), 3)
    halved = ("256 → 128", "128 → 64")
    assert record.recoveries == tuple(
        f"out of memory: micro-batch {sizes} tokens; the batch and its negatives stay as they are" for sizes in halved
    )
    assert set(record.recoveries) <= set(lines)
    for name, weight in wanted.items():
        assert torch.allclose(found[name], weight, atol=1e-5), name
    assert any(weight.abs().max() > 1e-3 for name, weight in found.items() if "lora_B" in name)  # 0 at first
