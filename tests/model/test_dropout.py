"""Light dropout: the chances, means and gradients of torch's own, from torch's generator, and gone without a trace."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ebr.model.compute.dropout import (
    LightDropout,
    chosen_dropout,
    dropout,
    keep_mask,
    light_dropout,
    light_dropout_attention,
    set_dropout,
)
from ebr.model.encoder.encoder import load_encoder

N = 1_000_003
"""Numbers of a draw; no multiple of the four that one random number gives."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bare(tiny_model, tiny_decoder):
    return {name: load_encoder(folder, device="cpu") for name, folder in (("encoder", tiny_model), ("decoder", tiny_decoder))}


@pytest.fixture
def encoder(bare):
    return copy.deepcopy(bare["encoder"])


def each_make():
    """Models of two small layers, with dropout in their configs, of makes that keep its chance in different places."""
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
    both = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    kinds = {
        "bert": both, "xlm-roberta": both, "mpnet": both,
        "modernbert": {"attention_dropout": 0.5, "mlp_dropout": 0.5, "embedding_dropout": 0.5, "pad_token_id": 0},
        "qwen2": {"attention_dropout": 0.5, "num_key_value_heads": 2},
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "dropout": 0.5, "attention_dropout": 0.5},
    }  # fmt: skip
    for kind, more in kinds.items():
        torch.manual_seed(0)
        named = {} if kind == "distilbert" else size
        yield kind, AutoModel.from_config(CONFIG_MAPPING[kind](**{**named, "vocab_size": 50, **more}))


@pytest.mark.parametrize(("kind", "model"), [*each_make()])
def test_a_model_without_dropout_trains_on_what_it_computes(kind, model):
    """In every make: with its own chance two passes differ, with 0 they are those of evaluation."""
    ids = torch.arange(1, 25).view(2, 12)
    passes = lambda: [model(input_ids=ids).last_hidden_state for _ in range(2)]  # noqa: E731
    model.train()
    one, other = passes()
    assert not torch.equal(one, other), "its config has dropout"
    before = model.config.to_dict()
    set_dropout(model, 0.0)
    one, other = passes()
    model.eval()
    expected, _ = passes()
    assert torch.equal(one, other) and torch.allclose(one, expected, atol=1e-5)
    assert chosen_dropout(nn.Sequential(model)) == 0, "whoever chooses how to attend is told"
    assert model.config.to_dict() == before, "what is saved says what the model was made with"


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_of_zeros_is_the_chance_within_five_sigma_and_the_mean_is_kept(p):
    torch.manual_seed(0)
    dropped = dropout(torch.ones(N), p)
    n_zeros = (dropped == 0).sum().item()
    sigma = math.sqrt(p * (1 - p) / N)
    assert abs(n_zeros / N - p) < 5 * sigma
    assert abs(dropped.double().mean().item() - 1) < 5 * sigma / (1 - p) + 1e-4  # 1e-4: chances are multiples of 1/65,536
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-4)


def test_scale_makes_up_for_the_chance_exactly():
    # 0.1 of 65,536 levels is 6553.6, rounded 6554: kept are 58,982 of them.
    torch.manual_seed(0)
    mask, scale = keep_mask(torch.Size([8]), 0.1, CPU)
    assert (mask.shape, mask.dtype) == ((8,), torch.bool)
    assert scale == 65_536 / 58_982


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    mask, _ = keep_mask(torch.Size([N]), 0.5, CPU)
    for distance in (1, 2, 3, 4, 64):
        agree = (mask[distance:] == mask[:-distance]).double().mean().item()
        assert abs(agree - 0.5) < 5 * 0.5 / math.sqrt(N - distance), distance


def test_same_state_of_torchs_generator_gives_the_same_mask_and_the_next_draw_another():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second = (keep_mask(torch.Size([50, 3]), 0.3, CPU)[0] for _ in range(2))
    torch.set_rng_state(state)
    again = keep_mask(torch.Size([50, 3]), 0.3, CPU)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_mask_of_one_row_of_rows_is_that_of_the_rows_laid_out():
    """An adapter's fused layer flattens what peft's own does not; a gradient cache may meet both."""
    torch.manual_seed(7)
    deep = keep_mask(torch.Size([4, 5, 6]), 0.3, CPU)[0]
    torch.manual_seed(7)
    assert torch.equal(keep_mask(torch.Size([20, 6]), 0.3, CPU)[0], deep.reshape(20, 6))


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_few_numbers_or_none_are_drawn_too(n):
    assert dropout(torch.ones(n), 0.5).shape == (n,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradient_is_mask_times_scale(dtype):
    torch.manual_seed(1)
    values = torch.randn(40, 5, dtype=dtype, requires_grad=True)
    torch.manual_seed(2)
    dropped = dropout(values, 0.25)
    torch.manual_seed(2)
    mask, scale = keep_mask(values.shape, 0.25, CPU)
    incoming = torch.randn(40, 5, dtype=dtype)
    dropped.backward(incoming)
    assert torch.equal(values.grad, (incoming * mask).mul_(scale))
    assert torch.equal(dropped, (values * mask).mul_(scale))
    assert dropped.dtype == dtype


def test_values_that_do_not_lie_in_a_row_keep_their_places():
    values = torch.arange(12.0).reshape(3, 4).T.requires_grad_()
    torch.manual_seed(2)
    dropped = dropout(values, 0.5)
    torch.manual_seed(2)
    mask, _ = keep_mask(values.shape, 0.5, CPU)
    assert torch.equal(dropped, values * mask * 2)


def test_input_is_left_as_it_was():
    values = torch.ones(100)
    dropout(values, 0.5)
    assert torch.equal(values, torch.ones(100))


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (0.0, False)])
def test_no_chance_and_no_training_change_nothing_and_draw_nothing(p, training):
    layer, values = LightDropout(p).train(training), torch.randn(20)
    before = torch.get_rng_state()
    assert torch.equal(layer(values), values)
    assert torch.equal(torch.get_rng_state(), before)


def test_certain_dropout_leaves_nothing():
    assert torch.equal(LightDropout(1.0).train()(torch.ones(5)), torch.zeros(5))


# ---------------------------------------------------------------- attention

B, H, L, D = 2, 4, 5, 8
ENCODER = SimpleNamespace(is_causal=False)


def states(n_heads=H, seed=0, dtype=torch.float64):
    return torch.randn(B, n_heads, L, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mask_of(kind):
    """The second text has three tokens."""
    seen = torch.ones(B, 1, L, L, dtype=torch.bool)
    seen[1, ..., 3:] = False
    if kind == "bool":
        return seen
    return None if kind is None else torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -math.inf)


@pytest.mark.parametrize("kind", [None, "bool", "float"])
@pytest.mark.parametrize("n_key_heads", [H, 2], ids=["own keys", "grouped keys"])
def test_mean_over_many_draws_is_attention_without_dropout(kind, n_key_heads):
    query, key, value = states(), states(n_key_heads, 1), states(n_key_heads, 2)
    wanted = scaled_dot_product_attention(query, key, value, mask_of(kind), enable_gqa=True, scale=0.3).transpose(1, 2)
    torch.manual_seed(0)
    many = [None if one is None else one.repeat(300, 1, 1, 1) for one in (query, key, value, mask_of(kind))]
    draws = light_dropout_attention(ENCODER, *many, dropout=0.2, scaling=0.3)[0].view(300, B, L, H, D)
    assert draws.var(0).max() > 0.01
    error = (draws.mean(0) - wanted).abs() / (draws.std(0) / math.sqrt(300) + 1e-12)
    assert error.max() < 5


def test_one_draw_by_hand():
    query, key, value = states(), states(seed=1), states(seed=2)
    torch.manual_seed(3)
    found, weights = light_dropout_attention(ENCODER, query, key, value, None, dropout=0.5)
    torch.manual_seed(3)
    mask, _ = keep_mask(torch.Size([B, H, L, L]), 0.5, CPU)
    shares = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(D), -1) * mask * 2
    assert weights is None
    assert torch.allclose(found, (shares @ value).transpose(1, 2), rtol=1e-12)


@pytest.mark.parametrize("n_key_heads", [H, 1], ids=["a key a head", "shared keys"])
@pytest.mark.parametrize("kind", [None, "bool", "float"])
def test_gradients_of_attention_are_those_of_plain_autograd_with_the_same_mask(kind, n_key_heads):
    query, key, value = (one.requires_grad_() for one in (states(), states(n_key_heads, 1), states(n_key_heads, 2)))
    mask = mask_of(kind)
    weights = torch.randn(B, L, H, D, dtype=torch.float64)
    torch.manual_seed(3)
    found, _ = light_dropout_attention(ENCODER, query, key, value, mask, dropout=0.3, scaling=0.7)
    gradients = torch.autograd.grad((found * weights).sum(), (query, key, value))
    torch.manual_seed(3)
    kept, scale = keep_mask(torch.Size([B, H, L, L]), 0.3, CPU)
    heads = [one.repeat_interleave(H // n_key_heads, dim=1) for one in (key, value)]
    scores = query @ heads[0].transpose(2, 3) * 0.7
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e300) if kind == "bool" else scores + mask
    plain = (scores.softmax(-1) * kept * scale @ heads[1]).transpose(1, 2)
    assert torch.allclose(found, plain, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients, torch.autograd.grad((plain * weights).sum(), (query, key, value)), strict=True):
        assert (ours - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("kind", [None, "bool", "float"])
def test_under_autocast_states_of_two_precisions_attend_in_one(kind):
    query, key, value = (one.requires_grad_() for one in (states(), states(seed=1), states(seed=2)))
    mask = mask_of(kind)
    mask = mask.float() if kind == "float" else mask
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(3)
        found, _ = light_dropout_attention(ENCODER, query.float(), key.float(), value.bfloat16(), mask, dropout=0.3)
    found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    torch.manual_seed(3)
    exact, _ = light_dropout_attention(ENCODER, query, key, value, mask_of(kind), dropout=0.3)
    (wanted,) = torch.autograd.grad(exact.sum(), key)
    assert (found - exact).abs().max() < 0.05
    assert (key.grad - wanted).abs().max() < 0.05


def test_a_learned_bias_gets_its_gradient():
    query, key, value = states(), states(seed=1), states(seed=2)
    bias = torch.zeros(1, H, L, L, dtype=torch.float64, requires_grad=True)
    light_dropout_attention(ENCODER, query, key, value, bias, dropout=0.3)[0].sum().backward()
    assert bias.grad is not None


def test_hidden_keys_stay_hidden_under_dropout():
    query, key, value = states(), states(seed=1), states(seed=2)
    for kind in ("bool", "float"):
        torch.manual_seed(3)
        found = light_dropout_attention(ENCODER, query, key, value, mask_of(kind), dropout=0.3)[0]
        other = value.clone()
        other[1, :, 3:] = 1e6
        torch.manual_seed(3)
        assert torch.equal(light_dropout_attention(ENCODER, query, key, other, mask_of(kind), dropout=0.3)[0], found)


def test_without_dropout_it_is_sdpa_itself():
    query, key, value = states(), states(seed=1), states(seed=2)
    before = torch.get_rng_state()
    found = light_dropout_attention(ENCODER, query, key, value, mask_of("bool"), dropout=0.0)[0]
    wanted = scaled_dot_product_attention(query, key, value, mask_of("bool")).transpose(1, 2)
    assert torch.equal(found, wanted)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("is_causal", [True, None], ids=["as told", "by the module"])
def test_causal_attention_without_a_mask_falls_back_and_sees_nothing_ahead(is_causal):
    query, key, value = states(), states(seed=1), states(seed=2)
    module = SimpleNamespace(is_causal=is_causal is None)
    torch.manual_seed(3)
    found = light_dropout_attention(module, query, key, value, None, dropout=0.3, is_causal=is_causal)[0]
    ahead = value.clone()
    ahead[:, :, -1] += 100
    torch.manual_seed(3)
    other = light_dropout_attention(module, query, key, ahead, None, dropout=0.3, is_causal=is_causal)[0]
    assert torch.equal(found[:, :-1], other[:, :-1])


# ---------------------------------------------------------------- a model, and back


def kinds(model):
    """Class of each dropout layer, and how each transformer attends."""
    layers = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    return layers, model[0].model.config._attn_implementation


def vectors(model, texts=("the red shoe", "buy a small blue lamp")):
    return model(model.preprocess(list(texts)))["sentence_embedding"]


def test_model_drops_out_lightly_inside_and_as_ever_behind(encoder):
    before = kinds(encoder)
    with light_dropout(encoder):
        inside = kinds(encoder)
        assert set(inside[0].values()) == {LightDropout}
        assert inside[1] != "sdpa"
    assert kinds(encoder) == before
    assert (set(before[0].values()), before[1]) == ({nn.Dropout}, "sdpa")


def test_error_inside_restores_the_model_too(encoder):
    before = kinds(encoder)
    with pytest.raises(KeyboardInterrupt), light_dropout(encoder):
        raise KeyboardInterrupt
    assert kinds(encoder) == before


def test_model_that_cannot_be_prepared_is_restored(encoder, monkeypatch):
    before, whole = kinds(encoder), type(encoder[0].model).set_attn_implementation

    def refuse(self, name):
        if name != "sdpa":
            raise ValueError(name)
        whole(self, name)

    monkeypatch.setattr(type(encoder[0].model), "set_attn_implementation", refuse)
    with pytest.raises(ValueError, match="ebr_light_dropout"), light_dropout(encoder):
        pass
    assert kinds(encoder) == before


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_evaluated_model_gives_the_same_to_the_bit(bare, name):
    model = copy.deepcopy(bare[name]).eval()
    wanted = vectors(model)
    with light_dropout(model):
        assert torch.equal(vectors(model), wanted)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_trained_model_drops_out_from_torchs_generator(bare, name):
    model = copy.deepcopy(bare[name]).train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    with light_dropout(model):
        torch.manual_seed(0)
        first, second = vectors(model), vectors(model)
        torch.manual_seed(0)
        again = vectors(model)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_mean_of_a_trained_model_is_torchs_own(encoder):
    encoder.train()

    def mean():
        torch.manual_seed(0)
        draws = vectors(encoder, ["the red shoe"] * 400).detach()
        return draws.mean(0), draws.std(0) / math.sqrt(400)

    plain, error = mean()
    with light_dropout(encoder):
        light, _ = mean()
    assert ((light - plain).abs() / error).max() < 6  # a difference of two means


def test_model_that_attends_in_another_way_is_left_alone(encoder):
    encoder[0].model.set_attn_implementation("eager")
    with light_dropout(encoder):
        layers, attention = kinds(encoder)
        assert set(layers.values()) == {LightDropout}
        assert attention == "eager"
    assert kinds(encoder)[1] == "eager"


def test_layers_of_a_kind_of_their_own_are_left_alone():
    class Own(nn.Dropout):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Own(0.5), nn.Dropout2d(0.5))
    with light_dropout(model):
        assert [type(module) for module in model[1:]] == [Own, nn.Dropout2d]


def test_checkpoint_saved_inside_names_torchs_own_attention(encoder, tmp_path):
    with light_dropout(encoder):
        encoder.save_pretrained(str(tmp_path))
    assert "ebr_light_dropout" not in "".join(
        path.read_text() for path in tmp_path.rglob("*.json") if path.stat().st_size < 10**5
    )
    assert kinds(load_encoder(str(tmp_path), device="cpu"))[1] == "sdpa"
