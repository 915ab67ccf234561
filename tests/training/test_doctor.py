"""The check before training: sick data sets diagnosed by name, a healthy one as healthy, and the figures behind it by hand."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from ebr.config import FinetuneConfig, TrainConfig
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.training.duplicates import find_faults, find_near_duplicates, share_without_negatives
from ebr.data.training.examples import Example
from ebr.data.training.text_table import RecordIds, TextTable
from ebr.training.doctor import text_figures
from ebr.training.doctor.diagnosis import diagnose
from ebr.training.doctor.report import CheckReport, Fact, Finding, Severity
from ebr.training.doctor.run_checks import RunFigures, judge_options, judge_texts
from ebr.training.doctor.text_figures import (
    Lengths,
    SampledRecords,
    _columns,
    _mean_padding,
    _script,
    _spell,
    measure_texts,
    sample_records,
)

WORDS = "red blue green shoe shirt lamp cup book small large buy query passage tea oak jar fox map ink bus kit pan rug".split()
GREEK = dict(zip("abcdefghijklmnopqrstuvwxyz", "αβγδεζηθικλμνξοπρστυφχψωαβ", strict=True))


def phrases(count, seed):
    """Distinct phrases of six words; no two of them share more than a few."""
    rng = random.Random(seed)
    return [" ".join(rng.sample(WORDS, 6)) for _ in range(count)]


def records(count=240):
    return [Example(query, (f"the {positive}",)) for query, positive in zip(phrases(count, 1), phrases(count, 2), strict=True)]


@dataclass
class Plan:
    """What diagnose reads of a FinetunePlan."""

    train: list
    validation: list = field(default_factory=list)
    dataset: EvaluationSet | None = None
    n_steps: int = 0

    @property
    def texts(self):
        return TextTable.of([*self.train, *self.validation])


@pytest.fixture(scope="module")
def model(tiny_model):
    from ebr.model.adapters.attach import attach_lora
    from ebr.model.encoder.encoder import load_encoder
    from ebr.model.encoder.prompts import set_prompts

    loaded = load_encoder(tiny_model, max_seq_length=64)
    set_prompts(loaded, prompt=None, query_prompt=None, passage_prompt=None)
    attach_lora(loaded, r=2, alpha=4, dropout=0.1, target_modules=None)
    return loaded


def report_of(plan, model, config=FinetuneConfig, *, room=2**40, query=None, passage=None, **options):
    from ebr.training.loop.arguments import count_steps

    chosen = config(**{"max_seq_length": 64, "train_batch_size": 8, "neg_nums": 2, **options})
    steps = plan.n_steps or count_steps(len(plan.train), chosen)
    model[0].query_length, model[0].document_length = query, passage
    return diagnose(replace(plan, n_steps=steps), model, chosen, room=room)


def faults(report):
    """Names of the findings that are more than notes."""
    return {finding.name for finding in report.findings if finding.severity is not Severity.NOTE}


def with_first(count, change):
    """The healthy records, the first `count` of them changed."""
    return [change(example) if row < count else example for row, example in enumerate(records())]


def greek(text):
    return "".join(GREEK.get(letter, letter) for letter in text)


def dataset(queries):
    ids = [f"q{place}" for place in range(len(queries))]
    return EvaluationSet(
        name="set", doc_ids=["d"], documents=["a thing that nobody trains on"], query_ids=ids, queries=queries,
        qrels={name: {"d": 1} for name in ids}, n_unjudged_queries=0, n_unknown_queries=0, n_missing_documents=0,
    )  # fmt: skip


def shouted(example):
    return replace(example, query=example.query.upper(), positives=(f" {example.positives[0].title()}",))


def shuffled(example):
    first, *rest = example.query.split()
    return replace(example, query=" ".join([*rest, first]) + "?", positives=(example.positives[0] + " !",))


def own_negative(example):
    return replace(example, negatives=example.positives)


def rings(examples, size):
    """As questions of one intent: each one's positive is the query of the next, of so many in a ring."""
    starts = [row - row % size for row in range(len(examples))]
    following = [examples[start + (row - start + 1) % size] for row, start in enumerate(starts)]
    return [replace(one, positives=(other.query,)) for one, other in zip(examples, following, strict=True)]


def sharing(examples, size):
    """As shoppers of one product: so many queries in turn have one positive in common, and each its own."""
    return [
        replace(one, positives=(*one.positives, f"shared {examples[row - row % size].query}"))
        for row, one in enumerate(examples)
    ]


SICK = {
    "few-records": (Plan(records(60)), {"num_epochs": 3}),
    "duplicate-records": (Plan([*records(), *map(shouted, records()[:20])]), {}),
    "near-duplicate-records": (Plan([*records(), *map(shuffled, records()[:20])]), {}),
    "contradicting-records": (Plan(with_first(20, own_negative)), {}),
    "negative-is-positive": (
        Plan([*records(), *(replace(r, positives=(f"a {r.query[::-1]}",), negatives=r.positives) for r in records()[:20])]),
        {},
    ),
    "query-is-positive": (Plan(with_first(20, lambda example: replace(example, positives=(example.query,)))), {}),
    "query-is-negative": (Plan(with_first(20, lambda example: replace(example, negatives=(example.query,)))), {}),
    "evaluation-leak": (Plan(records(), dataset=dataset([records()[3].query, *phrases(20, 10)])), {}),
    "queries-cut": (Plan(records()), {"query": 12, "query_max_len": 12}),
    "passages-cut": (Plan(records()), {"passage": 12, "passage_max_len": 12}),
    "unknown-tokens": (Plan([Example(greek(r.query), (greek(r.positives[0]),)) for r in records()]), {}),
    "lonely-records": (Plan(records()), {"train_batch_size": 1}),
    "identical-records": (Plan(records(1) * 240), {}),
    "one-positive": (Plan([replace(example, positives=("the answer",)) for example in records()]), {}),
    "everything-masked": (Plan([replace(example, query="the question") for example in records()]), {}),
    "answers-unseen": (Plan(rings(records(), 8)), {"same_answer": "text"}),
    "chains-lead-astray": (Plan(sharing(records(), 8)), {"same_answer": "chain"}),
    "high-learning-rate": (Plan(records()), {"finetune_type": "full", "learning_rate": 2e-4}),
    "low-learning-rate": (Plan(records()), {"learning_rate": 1e-7}),
    "few-steps": (Plan(records()), {"train_batch_size": 24}),
    "long-warm-up": (Plan(records()), {"warmup_ratio": 0.5}),
    "many-passes": (Plan(records()), {"num_epochs": 10}),
    "batch-over-set": (Plan(records()), {"train_batch_size": 241, "max_steps": 20, "early_stopping_patience": 3}),
    "memory-short": (Plan(records()), {"room": 1_000}),
}


def test_healthy_set_is_called_healthy(model):
    negatives = [replace(r, negatives=(f"a {text}",)) for r, text in zip(records(), phrases(240, 3), strict=True)]
    report = report_of(Plan(negatives, records(300)[240:], dataset(phrases(20, 10))), model)
    assert report.findings == ()
    assert report.is_healthy
    assert report.verdict == "training check: healthy"


@pytest.mark.parametrize("name", SICK)
def test_sick_set_is_diagnosed_by_name_and_by_nothing_else(name, model):
    plan, options = SICK[name]
    report = report_of(plan, model, **options)
    assert faults(report) == {name}
    assert not report.is_healthy
    finding = next(one for one in report.findings if one.name == name)
    assert finding.what and finding.why and finding.advice


def test_advice_is_spelt_as_each_front_end_spells_it(model):
    ours = {"finetune_type": "full", "warmup_ratio": 0.5, "learning_rate": 1.0}
    theirs = {"finetune_type": "full", "warmup_proportion": 0.5, "lr": 1.0}
    pairs = report_of(Plan(records()), model, **ours).findings
    required = {"model_name_or_path": "m", "train_dataset": "t", "output_dir": "o", "gradient_accumulation_steps": 1}
    triplets = report_of(Plan(records()), model, TrainConfig, **theirs, **required).findings
    assert [one.advice for one in pairs] == ["warmup_ratio 0.1 or less", "learning_rate 2e-5"]
    assert [one.advice for one in triplets] == ["warmup_proportion 0.1 or less", "lr 2e-5"]


def test_unknown_tokens_name_the_script(model):
    finding = report_of(*SICK["unknown-tokens"][:1], model).findings[0]
    assert "Greek 100 %" in finding.what
    assert finding.severity is Severity.CRITICAL
    assert finding.advice.endswith(
        "multilingual one; where none can be had, ebr extend, which would leave about 0 % of the characters unknown, of 100 %"
    )


def test_what_cannot_be_extended_is_not_advised_to_be(model, monkeypatch):
    monkeypatch.setattr("ebr.model.vocabulary.spelling._KINDS", {})
    finding = report_of(*SICK["unknown-tokens"][:1], model).findings[0]
    assert finding.advice.endswith("multilingual one")


@pytest.mark.parametrize(
    ("text", "script"), [("国", "Chinese characters"), ("Жук", "Cyrillic"), ("🙂", "symbols and emoji"), ("한", "Korean")]
)
def test_script_is_named_in_words(text, script):
    assert _script(text) == script


def test_negatives_that_the_loss_can_use_keep_one_positive_from_being_sick(model):
    pairs = zip(records(), phrases(240, 3), strict=True)
    plan = Plan([replace(r, positives=("the answer",), negatives=(f"a {text}",)) for r, text in pairs])
    assert "one-positive" not in faults(report_of(plan, model))


def test_record_without_a_split_is_judged_too(model):
    assert report_of(Plan(records()[:1], n_steps=30), model).findings  # one record: no batch, no neighbour, no percentile


def numbered(*examples):
    return TextTable.of(examples).records(examples)


def test_faults_are_counted_by_hand():
    found = find_faults(
        numbered(
            Example("A", ("x", "y"), ("n",)),
            Example(" a ", ("X",), ("y", "n")),  # repeats a pair of the first, and calls its other positive wrong
            Example("b", ("b",), ("b", "x")),  # its own positive and, contradicting itself, its own negative
            Example("c", ("z",), ("z",)),
        )
    )
    assert (found.n_records, found.n_negatives, found.distinct_records, found.distinct_positives) == (4, 6, 3, 4)
    assert (found.repeated.count, found.repeated.first) == (1, 1)
    assert (found.query_is_positive.count, found.query_is_negative.count) == (1, 1)
    assert (found.contradicting.count, found.contradicting.first) == (2, 2)
    assert (found.answers_elsewhere.count, found.answers_elsewhere.first) == (1, 1)


def test_record_that_brings_a_new_negative_is_no_repeat():
    found = find_faults(
        numbered(
            Example("a", ("x",), ("n",)),
            Example("a", ("x",), ("m",)),  # to join
            Example("a", ("x",), ("N",)),  # repeats the first
            Example("b", ("x",), ("n",)),
            Example("b", ("x",), ()),  # repeats
        )
    )
    assert (found.repeated.count, found.repeated.first) == (2, 2)
    assert (found.to_join.count, found.to_join.first) == (1, 1)


def test_triplets_of_one_negative_each_are_healthy_and_may_be_joined(model):
    once = [replace(r, negatives=(f"a {text}",)) for r, text in zip(records(), phrases(240, 3), strict=True)]
    again = [replace(r, negatives=(f"a {text}",)) for r, text in zip(records()[:20], phrases(20, 4), strict=True)]
    report = report_of(Plan([*once, *again]), model)
    assert [finding.name for finding in report.findings] == ["records-to-join"]
    assert report.is_healthy


def test_one_query_in_every_record_takes_no_longer_than_many_queries():
    many = [RecordIds(0, (n + 2,), (1,)) for n in range(20_000)]
    started = time.monotonic()
    find_faults(many)
    assert share_without_negatives(many, 64, 0, np.random.default_rng(0))[0] == 1.0
    assert time.monotonic() - started < 3  # a tenth of a second; with a set of all answers made for each record, minutes


def near_duplicates(examples, rng, **options):
    texts = TextTable.of(examples)
    return find_near_duplicates(texts.records(examples), texts, rng, **options)


def test_only_the_beginning_of_a_long_text_is_compared():
    beginning = " ".join(f"w{n}" for n in range(600))  # more than 2,000 characters
    examples = [Example("how to open an account", (" ".join([beginning, *(f"{end}{n}" for n in range(600))]),)) for end in "xy"]
    assert near_duplicates(examples, np.random.default_rng(0)).count == 1


def test_near_duplicates_need_both_query_and_positive_to_be_near():
    examples = [
        Example("how to open an account", ("go to the bank",)),
        Example("An account: how to open?", ("to the bank, go",)),  # near
        Example("how to open an account!", ("send us a letter",)),  # another answer
        Example("how to close an account", ("go to the bank.",)),  # another question
        Example("how to open an account", ("go to the bank",)),  # equal, and counted as such
    ]
    near = near_duplicates(examples, np.random.default_rng(0))
    assert (near.n_compared, near.count, near.first) == (4, 1, (1, 0))


def test_more_records_than_are_compared_are_drawn():
    examples = records(30)
    near = near_duplicates(examples, np.random.default_rng(0), most=10)
    assert (near.n_compared, near.count) == (10, 0)


def test_idle_share_is_that_of_queries_whose_candidates_are_all_right():
    examples = numbered(Example("a", ("x",)), Example("a", ("y",)), Example("b", ("x",)))
    # In one batch, a's records have x and y, both right for a; b has the wrong y.
    assert share_without_negatives(examples, 3, 0, np.random.default_rng(0)) == (pytest.approx(2 / 3), 0)


def test_drawn_negative_ends_idleness_unless_it_is_the_query():
    own = numbered(Example("a", ("x",), ("n",)))
    same = numbered(Example("a", ("x",), ("A",)))
    rng = np.random.default_rng(0)
    assert share_without_negatives(own, 1, 1, rng)[0] == 0.0
    assert share_without_negatives(own, 1, 0, rng)[0] == 1.0
    assert share_without_negatives(same, 1, 1, rng)[0] == 1.0


def test_length_that_cuts_one_percent_leaves_one_of_a_hundred_longer():
    lengths = Lengths(np.arange(1, 101), limit=90)
    assert lengths.share_cut == pytest.approx(0.10)
    assert lengths.cutting(0.01) == 99
    assert lengths.cutting(0.0) == 100
    assert lengths.kept().max() == 90


def test_padding_of_columns_and_of_micro_batches_is_counted_by_hand():
    batch = [[2, 6], [4, 6]]  # 18 tokens; as columns 2 × 4 + 2 × 6 = 20
    assert _mean_padding(batch, 2, None) == pytest.approx(1 - 18 / 20)
    assert _mean_padding(batch, 2, 24) == pytest.approx(1 - 18 / 24)  # one micro-batch, all as long as the longest
    assert _mean_padding(batch, 2, 12) == pytest.approx(1 - 18 / 20)  # 6 6 | 4 2
    assert _mean_padding(batch, 1, None) == 0.0


def test_columns_give_each_record_its_own_negatives():
    assert _columns(np.array([1, 2]), np.array([3, 4, 5, 6, 7]), [1, 2]) == [[1, 3, 5], [2, 4, 6, 7]]


def test_sample_stops_once_it_holds_enough_texts():
    drawn = sample_records([replace(r, negatives=("n", "n", "m")) for r in records()], 2, np.random.default_rng(0), most=10)
    assert len(drawn.queries) == 3  # of 4 texts each: 8 are too few, 12 enough
    assert drawn.negatives == [["n", "m"]] * 3


def test_sample_stops_at_four_million_characters_and_counts_a_book_as_what_is_read_of_it():
    books = [Example("q", ("b" * 90_000,))] * 100
    assert len(sample_records(books, 0, np.random.default_rng(0)).queries) == 80  # of 50,001 each: 79 are 3,950,079


def test_texts_are_spelt_some_at_a_time_with_the_same_figures(model, monkeypatch):
    texts = ["red shoe", greek("red"), "blue", f"tea {greek('cup')} {greek('fox')}", "", "ink"]
    at_once = _spell(model.tokenizer, texts, "")
    calls = []
    encode = text_figures._encoded
    monkeypatch.setattr(text_figures, "_AT_ONCE", 2)
    monkeypatch.setattr(text_figures, "_encoded", lambda t, chunk, **o: calls.append((len(chunk), o)) or encode(t, chunk, **o))
    spelt = _spell(model.tokenizer, texts, "")
    assert spelt.lengths.tolist() == at_once.lengths.tolist()
    assert (spelt.unknown, spelt.n_tokens) == (at_once.unknown, at_once.n_tokens)
    assert spelt.unknown == {"Greek": 3}
    # Places in the text are asked for only where something could not be spelt: one text of each of the first two chunks.
    with_places = {"add_special_tokens": False, "return_offsets_mapping": True}
    assert calls == [(2, {}), (1, with_places), (2, {}), (1, with_places), (2, {})]


ROLES = {
    "closing token and padding": ("$A <|endoftext|>", {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}),
    "end of text": ("$A <|endoftext|>", {"eos_token": "<|endoftext|>"}),
    "beginning of text": ("<|endoftext|> $A", {"bos_token": "<|endoftext|>"}),
    "first and last token": ("<|endoftext|> $A <|endoftext|>", {"cls_token": "<|endoftext|>", "sep_token": "<|endoftext|>"}),
}


def fast_tokenizer(words, template, names):
    """A tokenizer of whole words whose unknown token has other roles too."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate(["<|endoftext|>", "<|im_end|>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<|endoftext|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<|endoftext|>", **names)


def slow_tokenizer(words, template, names):
    """The same in Python."""
    from transformers import PreTrainedTokenizer

    vocabulary = {word: place for place, word in enumerate(["<|endoftext|>", "<|im_end|>", *words])}
    parts = template.split()

    class Slow(PreTrainedTokenizer):
        vocab_size = len(vocabulary)

        def get_vocab(self):
            return vocabulary

        def _tokenize(self, text, **kwargs):
            return text.split()

        def _convert_token_to_id(self, token):
            return vocabulary.get(token, 0)

        def _convert_id_to_token(self, index):
            return list(vocabulary)[index]

        def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
            return [token for part in parts for token in (token_ids_0 if part == "$A" else [0])]

        def num_special_tokens_to_add(self, pair=False):
            return len(parts) - 1

    return Slow(unk_token="<|endoftext|>", **names)


@pytest.mark.parametrize("make", [fast_tokenizer, slow_tokenizer])
@pytest.mark.parametrize("role", ROLES)
def test_unknown_token_is_counted_where_the_text_gave_it_and_not_where_the_template_or_the_prompt_did(role, make):
    template, names = ROLES[role]
    tokenizer = make(["red", "shoe", "query"], template, names)
    assert 0 in tokenizer("red shoe")["input_ids"]  # every text has the token
    spelt = _spell(tokenizer, ["red shoe", "red", "shoe shoe shoe"], "")
    assert (spelt.unknown, spelt.n_tokens) == ({}, 6)
    assert spelt.lengths.tolist() == [n_words + len(template.split()) - 1 for n_words in (2, 1, 3)]
    assert _spell(tokenizer, ["red κόκκινο", "red", "μπλε μπλε"], "").unknown == {"Greek": 3}
    behind_a_prompt = _spell(tokenizer, ["red κόκκινο", "red"], "αναζήτηση query ")
    assert (behind_a_prompt.unknown, behind_a_prompt.n_tokens) == ({"Greek": 1}, 3)
    assert behind_a_prompt.n_characters == len("red κόκκινοred")


def test_token_that_a_text_calls_by_its_name_is_not_one_that_cannot_be_spelt():
    tokenizer = fast_tokenizer(["red", "shoe"], *ROLES["end of text"])
    assert _spell(tokenizer, ["red shoe<|endoftext|>", "red shoe<|endoftext|>"], "").unknown == {}


def test_model_whose_texts_are_closed_with_its_unknown_token_is_called_healthy(model, monkeypatch):
    tokenizer = fast_tokenizer([*WORDS, "the"], *ROLES["closing token and padding"])
    monkeypatch.setattr(type(model), "tokenizer", tokenizer)
    sample = sample_records(records(), 2, np.random.default_rng(0))
    figures = measure_texts(model, sample, batch_size=8, token_budget=512)
    assert (figures.unknown, figures.queries.tokens.max()) == ({}, 7)  # six words, and what closes them
    assert judge_texts(figures, FinetuneConfig()) == []
    strange = SampledRecords(list(map(greek, sample.queries)), list(map(greek, sample.positives)), sample.negatives)
    (finding,) = judge_texts(measure_texts(model, strange, batch_size=8, token_budget=512), FinetuneConfig())
    assert (finding.name, finding.severity) == ("unknown-tokens", Severity.CRITICAL)
    assert "100 % of the tokens are unknown to the tokenizer (Greek 100 %)" in finding.what


def test_small_micro_batches_are_advised_on_a_cpu_only(model, monkeypatch):
    sample = sample_records(records(20), 0, np.random.default_rng(0))
    assert measure_texts(model, sample, batch_size=8, token_budget=512).padding_small is not None
    monkeypatch.setattr(type(model), "device", property(lambda self: torch.device("cuda")))
    assert measure_texts(model, sample, batch_size=8, token_budget=512).padding_small is None


def test_costly_passes_are_fewer_and_padded_more():
    batch = [[100, 10]]  # 110 tokens; apart they cost 2 passes, together 200 tokens
    assert _mean_padding(batch, 1, 1_000, 64) == 0.0  # 90 of padding against a pass as 64 tokens
    assert _mean_padding(batch, 1, 1_000, 2_048) == pytest.approx(1 - 110 / 200)


def found(plan, model, name, **options):
    return next(one for one in report_of(plan, model, **options).findings if one.name == name)


def test_loss_without_a_mask_trains_hidden_negatives_and_is_not_called_idle(model):
    contradicting, masked = SICK["contradicting-records"][0], SICK["everything-masked"][0]
    ours = found(contradicting, model, "contradicting-records")
    theirs = found(contradicting, model, "contradicting-records", loss="MultipleNegativesRankingLoss")
    scored = found(contradicting, model, "contradicting-records", loss="MarginMSELoss")
    left_out = found(contradicting, model, "contradicting-records", loss="TripletLoss")
    assert ours.why.endswith("the loss hides such a negative, so its draw is lost")
    assert left_out == ours
    assert theirs.why.endswith("it is trained as a wrong answer")
    assert scored.why.endswith("it counts as much as the teacher's score says")
    grades = [one.severity for one in (ours, theirs, scored)]
    assert grades == [Severity.WARNING, Severity.CRITICAL, Severity.WARNING]
    for loss in ("MultipleNegativesRankingLoss", "TripletLoss"):
        assert "everything-masked" not in faults(report_of(masked, model, loss=loss))


def test_advice_names_the_sources_where_there_are_some(model):
    plan = SICK["duplicate-records"][0]
    assert found(plan, model, "duplicate-records").advice == "remove them from data_path"
    assert found(plan, model, "duplicate-records", sources=[{"data_path": "a"}]).advice == "remove them from sources"


def test_steps_and_passes_of_a_run():
    config = FinetuneConfig(train_batch_size=10, num_epochs=3, warmup_ratio=0.05)
    run = RunFigures.of(95, 30, config, 1)
    assert (run.warm_up, run.passes(config)) == (2, 3)
    cut = FinetuneConfig(train_batch_size=10, max_steps=19, gradient_accumulation_steps=2)
    assert RunFigures.of(95, 19, cut, 1).passes(cut) == 4  # 19 × 10 × 2 of 95
    assert RunFigures.of(95, 30, FinetuneConfig(warmup_ratio=0.5, lr_scheduler_type="constant"), 1).warm_up == 0


def test_few_steps_say_how_many_epochs_make_a_hundred():
    config = FinetuneConfig(train_batch_size=10, num_epochs=1)
    (finding,) = judge_options(RunFigures.of(95, 10, config, 1), config)
    assert finding.advice.startswith("num_epochs 9, for about 90 steps, or a smaller train_batch_size;")


@pytest.mark.parametrize(
    ("n_records", "n_steps", "options", "advice"),
    [
        # 3 steps a pass: nine passes make 27, which is not enough; ten would be warned of.
        (90, 3, {"train_batch_size": 32, "num_epochs": 1}, "num_epochs 9, for about 27 steps, or a smaller train_batch_size"),
        (90, 18, {"train_batch_size": 45, "num_epochs": 9}, "a smaller train_batch_size"),
        (480, 15, {"train_batch_size": 32, "num_epochs": 1}, "num_epochs 7, for about 100 steps"),
        (90, 6, {"train_batch_size": 30, "max_steps": 6}, "max_steps 27, for about 27 steps, or a smaller train_batch_size"),
        (9_000, 6, {"train_batch_size": 30, "max_steps": 6}, "max_steps 100, for about 100 steps"),
    ],
)
def test_few_steps_never_advise_what_many_passes_warn_of(n_records, n_steps, options, advice):
    config = FinetuneConfig(**options)
    finding = judge_options(RunFigures.of(n_records, n_steps, config, 1), config)[0]
    assert (finding.name, finding.advice) == ("few-steps", f"{advice}; more records are better than more passes")


@pytest.mark.parametrize(
    ("options", "n_processes", "advice", "never_change"),
    [({}, 1, 10, True), ({}, 4, 2, True), ({"train_batch_size": 40}, 4, 2, False),
     ({"train_batch_size": 40, "gather_negatives": True}, 4, 2, True)],
)  # fmt: skip
def test_batch_over_the_set_is_told_by_what_all_processes_take(options, n_processes, advice, never_change):
    # Eighty records: an eighth of them a step, over all processes; and a query's negatives are those that it sees.
    config = FinetuneConfig(**{"train_batch_size": 81, **options})
    finding = next(one for one in judge_options(RunFigures.of(80, 100, config, n_processes), config) if one.name[:5] == "batch")
    assert finding.advice == f"train_batch_size {advice} or less"
    assert finding.why.endswith("negatives never change") is never_change


def report(n_findings):
    findings = [Finding(f"n-{place}", Severity.NOTE, "what " * 30, "why", "do") for place in range(n_findings)]
    worst = Finding("worst", Severity.CRITICAL, "what", "why", "do")
    return CheckReport.of([*findings, worst], [Fact("records", {"train": 3}, "3 to train on")])


def test_report_shows_the_worst_first_and_stays_on_a_page():
    lines = report(30).lines()
    assert lines[:3] == [
        "training check: needs attention (1 critical, 30 notes)",
        "records       3 to train on",
        "CRITICAL worst: what",
    ]
    assert len(lines) <= 61
    assert max(map(len, lines)) <= 110
    assert " ".join(lines).endswith("n-29 (see training_check.json)")


def test_report_as_json_has_every_finding_and_figure():
    written = report(30).to_json()
    assert written["healthy"] is False
    assert [one["name"] for one in written["findings"]] == ["worst", *(f"n-{place}" for place in range(30))]
    assert written["facts"] == {"records": {"train": 3}}
