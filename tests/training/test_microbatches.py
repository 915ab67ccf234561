"""Micro-batches: whatever the budget, the order and the memory, the loss and the gradients of one pass over the batch."""

import copy
import math
import weakref

import numpy as np
import pytest
import torch

from ebr.model.adapters.attach import attach_lora, train_every_weight
from ebr.model.compute.dropout import light_dropout
from ebr.model.compute.lora_linear import fused_lora
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.text_reader import TextReader
from ebr.training.batches.collator import TextGroup
from ebr.training.batches.gradient_cache import GradientCache
from ebr.training.loss.objectives import InfoNCE, Targets

WORDS = "red blue green shoe shirt lamp cup book small large buy the".split()
TEXTS = [
    " ".join(WORDS[(index * step) % len(WORDS)] for step in range(1, 2 + (7 * index) % 11)) + " 大国"[: index % 4]
    for index in range(16)
]
"""Eight queries and their eight positives, of 1 to 11 words."""
KEEP_ALL = math.inf


@pytest.fixture(scope="module")
def bare(tiny_model, tiny_decoder):
    """The models, loaded once; each test takes a copy."""
    return {name: load_encoder(folder, device="cpu") for name, folder in (("encoder", tiny_model), ("decoder", tiny_decoder))}


@pytest.fixture
def exact(bare):
    """A model in float64 without dropout, in training; all of it trained."""
    return lambda name="encoder": trained(bare[name], dropout=0.0).double()


@pytest.fixture
def dropping(bare):
    """A model in float32 that drops out a fifth of everything, with adapters or all of it trained."""
    return lambda name="encoder", *, lora=False: trained(bare[name], dropout=0.2, lora=lora)


def trained(bare, *, dropout, lora=False):
    model = copy.deepcopy(bare)
    if lora:
        attach_lora(model, r=4, alpha=8, dropout=dropout)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # 0 at first, which would hide much
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    else:
        train_every_weight(model)
    for module in model.modules():
        if type(module) is torch.nn.Dropout:
            module.p = dropout
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    return model.train()


def groups_of(model, texts=TEXTS, parts=None):
    """parts: the places of each group's texts."""
    reader = TextReader(model, "document", "")
    parts = parts or [range(len(texts))]
    return [TextGroup("document", 0, reader.prepare([texts[place] for place in part]), np.array(part)) for part in parts]


def embedder(model, token_budget=40, memory=KEEP_ALL, say=lambda line: None):
    return GradientCache(
        model, [{role: TextReader(model, role, "") for role in ("query", "document")}], token_budget, memory, say
    )


def loss_of(rows):
    n = len(rows) // 2
    targets = Targets(torch.ones(n, n, dtype=torch.bool), torch.arange(n), torch.full((n,), math.nan))
    return InfoNCE(0.1)(rows[:n], rows[n:], targets)["contrastive_loss"]


def gradients(model):
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    return found


def step(model, groups=None, *, seed=0, bf16=False, **options):
    """(vectors, loss, gradients, the random state behind them)."""
    torch.manual_seed(seed)
    ours = options.pop("embedder", None) or embedder(model, **options)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        rows = ours.embed(groups or groups_of(model))
    loss = loss_of(rows)
    torch.rand(3)  # an objective may draw too
    loss.backward()
    return rows.detach(), loss.detach(), gradients(model), torch.get_rng_state()


def plain_step(model):
    """One pass over the padded batch in its own order, through sentence-transformers alone."""
    loss = loss_of(model(model.preprocess(TEXTS))["sentence_embedding"])
    loss.backward()
    return loss.detach(), gradients(model)


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-9), name


def assert_equal_bits(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        for name, value in one.items() if isinstance(one, dict) else [("", one)]:
            assert torch.equal(value, other[name] if name else other), name


@pytest.fixture
def passes(monkeypatch):
    """(texts, whether with a graph) of each forward pass of a model."""

    def watch(model):
        seen, forward = [], model.forward

        def noting(features, **options):
            seen.append((len(features["input_ids"]), torch.is_grad_enabled()))
            return forward(features, **options)

        monkeypatch.setattr(model, "forward", noting)
        return seen

    return watch


# ---------------------------------------------------------------- one pass over everything


@pytest.mark.parametrize(
    ("name", "token_budget", "memory"),
    [
        *(("encoder", *case) for case in [(1, KEEP_ALL), (40, KEEP_ALL), (40, 0), (40, 150_000), (10**6, 0)]),
        *(("decoder", *case) for case in [(40, KEEP_ALL), (40, 0)]),
    ],
)
def test_loss_and_gradients_are_those_of_one_pass_over_the_whole_batch(exact, name, token_budget, memory):
    model = exact(name)
    wanted_loss, wanted = plain_step(model)
    _, loss, found, _ = step(model, token_budget=token_budget, memory=memory)
    assert loss.item() == pytest.approx(wanted_loss.item(), abs=1e-9)
    assert_close(found, wanted)


def test_order_and_grouping_of_the_texts_change_nothing(exact):
    model = exact()
    _, wanted = plain_step(model)
    order = np.random.default_rng(0).permutation(16)
    for parts in ([order], [range(1, 16, 2), range(0, 16, 2)], [order[:3], order[3:]]):
        rows, _, found, _ = step(model, groups_of(model, parts=parts), memory=0)
        assert_close(found, wanted)
        assert torch.allclose(rows, model(model.preprocess(TEXTS))["sentence_embedding"], atol=1e-9)


def test_texts_padded_on_the_left_are_pooled_at_their_last_token(exact):
    model = exact("decoder")
    model.tokenizer.padding_side = "left"
    wanted = torch.cat([model(model.preprocess([text]))["sentence_embedding"] for text in TEXTS])
    # Rotary angles are float32 in any model, and another padding is another angle.
    assert torch.allclose(embedder(model).embed(groups_of(model)), wanted, atol=1e-5)


def test_texts_of_a_model_with_its_own_way_are_cut_and_put_back_too(exact):
    model = exact()
    _, wanted = plain_step(model)
    model[0].processing_kwargs = {"text": {"max_length": 64}}
    groups = groups_of(model)
    assert groups[0].prepared.tokens is None
    assert_close(step(model, groups, token_budget=20, memory=0)[2], wanted)


def test_micro_batches_stay_within_their_budget(exact, passes):
    model = exact()
    seen = passes(model)
    step(model, token_budget=40)
    lengths = sorted((len(ids) for ids in model.tokenizer(TEXTS)["input_ids"]), reverse=True)
    start = 0
    for n_texts, _ in seen:
        assert n_texts * lengths[start] <= 40
        start += n_texts
    assert start == 16


# ---------------------------------------------------------------- computed twice


@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize("memory", [0, 150_000])
def test_with_dropout_on_cached_and_kept_gradients_are_equal_to_the_bit(dropping, name, memory):
    model = dropping(name)
    kept = step(model)
    assert_equal_bits(step(model, memory=memory), kept)
    assert not torch.equal(step(model, seed=1)[0], kept[0])  # dropout is on indeed


@pytest.mark.parametrize("bf16", [False, True])
def test_made_fast_cached_and_kept_gradients_are_equal_to_the_bit(dropping, bf16):
    model = dropping(lora=True)
    with fused_lora(model), light_dropout(model):
        kept = step(model, bf16=bf16)
        assert_equal_bits(step(model, memory=0, bf16=bf16), kept)


@pytest.mark.parametrize("lora", [False, True])
def test_under_autocast_cached_and_kept_gradients_are_equal_to_the_bit(dropping, lora):
    model = dropping(lora=lora)
    kept = step(model, bf16=True)
    assert_equal_bits(step(model, memory=0, bf16=True), kept)
    assert not torch.equal(step(model)[0], kept[0])  # bfloat16 indeed


def test_gradient_checkpointing_changes_nothing(dropping):
    model = dropping()
    kept = step(model)
    model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    for memory in (0, KEEP_ALL):
        assert_equal_bits(step(model, memory=memory), kept)


def test_adapters_without_the_fused_layers_are_equal_to_the_bit_too(dropping):
    model = dropping(lora=True)
    assert_equal_bits(step(model, memory=0), step(model))


def test_without_memory_only_the_first_pass_is_kept_and_the_others_come_twice(exact, passes):
    model = exact()
    seen = passes(model)
    step(model, memory=0)
    with_graph = [has_graph for _, has_graph in seen]
    n_passes = (len(seen) + 1) // 2
    assert with_graph == [True] + [False] * (n_passes - 1) + [True] * (n_passes - 1)
    assert [texts for texts, _ in seen[n_passes:]] == [texts for texts, _ in seen[1:n_passes]]


def test_as_many_are_kept_as_memory_holds_with_room_for_one_more(exact, passes):
    model = exact()
    whole = embedder(model, token_budget=1)  # each text by itself
    step(model, embedder=whole)
    lengths = sorted((len(ids) for ids in model.tokenizer(TEXTS)["input_ids"]), reverse=True)
    held = [whole._held * sum(lengths[:n]) / sum(lengths) for n in range(17)]
    seen = passes(model)
    for n_kept in (1, 5, 9):
        seen.clear()
        step(model, token_budget=1, memory=held[n_kept] + (held[n_kept] - held[n_kept - 1]) * 1.01)
        assert [has_graph for _, has_graph in seen[:n_kept]] == [True] * n_kept
        assert not seen[n_kept][1]


def test_that_it_computes_twice_is_said_once(exact):
    model, lines = exact(), []
    ours = embedder(model, memory=0, say=lines.append)
    for _ in range(2):
        step(model, embedder=ours)
    (line,) = lines
    assert line.startswith("gradient cache: of ")
    assert "are computed twice" in line


def test_nothing_is_said_where_everything_is_kept(exact):
    lines = []
    step(exact(), say=lines.append)
    assert lines == []


def test_without_gradients_there_are_no_graphs_and_nothing_is_said(exact, passes):
    model, lines = exact(), []
    wanted = model(model.preprocess(TEXTS))["sentence_embedding"]
    seen = passes(model)
    with torch.no_grad():
        rows = embedder(model, memory=0, say=lines.append).embed(groups_of(model))
    assert not rows.requires_grad
    assert torch.allclose(rows, wanted, atol=1e-9)
    assert not any(has_graph for _, has_graph in seen)
    assert lines == []


def test_gradients_add_to_those_that_are_there(exact):
    model = exact()
    _, wanted = plain_step(model)
    for _ in range(2):
        loss_of(embedder(model, memory=0).embed(groups_of(model))).backward()
    assert_close(gradients(model), {name: 2 * gradient for name, gradient in wanted.items()})


# ---------------------------------------------------------------- memory


class Live:
    """Bytes that autograd holds at a time, weights left out; `peak` is the most so far."""

    def __init__(self, model):
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._holders = {}
        self.now = self.peak = 0

    def watch(self):
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)

    def _pack(self, tensor):
        held = Held(tensor)
        place = tensor.untyped_storage().data_ptr()
        if place not in self._weights:
            self._holders.setdefault(place, 0)
            self._holders[place] += 1
            size = tensor.untyped_storage().nbytes()
            self.now += size if self._holders[place] == 1 else 0
            self.peak = max(self.peak, self.now)
            weakref.finalize(held, self._release, place, size)
        return held

    def _release(self, place, size):
        self._holders[place] -= 1
        self.now -= 0 if self._holders[place] else size


class Held:
    def __init__(self, tensor):
        self.tensor = tensor


def peak_of(model, texts, **options):
    live = Live(model)
    ours, groups = embedder(model, **options), groups_of(model, texts)
    ours.embed(groups)  # while it measures, hooks of its own hide ours
    with live.watch():
        ours.embed(groups).square().sum().backward()
    model.zero_grad()
    return live.peak


def test_sixty_four_texts_train_in_the_memory_of_one_micro_batch(dropping):
    model = dropping()
    texts = [" ".join(WORDS[(index + place) % 12] for place in range(8)) for index in range(64)]  # of 10 tokens each
    one = peak_of(model, texts[:4], token_budget=40)
    assert peak_of(model, texts, token_budget=40, memory=0) < 1.2 * one
    assert peak_of(model, texts, token_budget=40, memory=4.5 * one) < 4.7 * one
    assert peak_of(model, texts, token_budget=40) > 14 * one


# ---------------------------------------------------------------- smaller


def test_shrinking_halves_micro_batch_and_memory_and_says_so(exact):
    ours = embedder(exact(), token_budget=4096, memory=1000)
    assert ours.shrink() == "micro-batch 4,096 → 2,048 tokens; the batch and its negatives stay as they are"
    assert (ours.token_budget, ours.memory) == (2048, 500)


def test_shrinking_ends_at_64_tokens(exact):
    ours = embedder(exact(), token_budget=200)
    for _ in range(2):
        assert ours.can_shrink
        ours.shrink()
    assert (ours.token_budget, ours.can_shrink) == (64, False)


def test_memory_without_bounds_shrinks_to_half_of_what_was_held(exact):
    model = exact()
    ours = embedder(model, token_budget=100)
    step(model, embedder=ours)
    held = ours._held
    ours.shrink()
    assert ours.memory == held / 2 > 0
