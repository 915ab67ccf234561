"""Every option of fine-tuning and of the maps is proved to reach its consumer: change it, see the one thing change."""

import json
import logging
from dataclasses import fields, is_dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.modules import Normalize

from ebr.config import AdaptConfig, FinetuneConfig, VisualizationConfig
from ebr.data.vectors.embeddings import write_embeddings
from ebr.model.compute import local_engine
from ebr.model.encoder import encoder
from ebr.model.encoder.pooling import pooling_name
from ebr.model.files.identity import fingerprint
from ebr.training.loop import arguments, engine
from ebr.training.loop import fit as training
from ebr.training.plan import plan_finetune
from ebr.training.query_map import fit as query_map
from ebr.training.query_map.plan import plan_adapt
from ebr.training.resources.processes import ALONE, Processes
from ebr.visualization.command import plan_visualization, visualize_embeddings
from ebr.workflow import adapting, finetuning
from tests.whole_models import save_encoder_of

# Values of the trainer's arguments that carry the time or the machine.
VOLATILE = {"logging_dir", "run_name"}


class TwoProcesses(Processes):
    """The first of two, with no other to wait for."""

    def wait(self):
        pass


TWO = TwoProcesses(0, 2)


class NotingBook(engine.TokenCache):
    """A book of tokens that remembers where it was told to keep them."""

    def __init__(self, reader, texts, folder):
        super().__init__(reader, texts, folder)
        self.folder = folder


@pytest.fixture(autouse=True)
def the_same_machine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EBR_CACHE_DIR", "cache")
    monkeypatch.setattr(engine, "available_bytes", lambda device: 8 * 2**30)
    monkeypatch.setattr(engine, "TokenCache", NotingBook)


def flat(prefix, record):
    return {f"{prefix}.{name}": repr(value) for name, value in record.items() if name not in VOLATILE}


def observe(config, processes=ALONE):
    """Everything that a run is made of, by name, without training."""
    plan = plan_finetune(config, processes.count)
    model = finetuning.load_for_training(config).model
    training.prepare_model(model, config)
    mixture = finetuning.mixture_of(plan, model)
    parts = engine.build_engine(
        model, plan.train, plan.validation, config, ids=plan.texts.ids, processes=processes, mixture=mixture, say=print
    )
    watch = training._watch(model, config, Path("work"), print)
    evaluate = (lambda *_: {}) if plan.dataset else None
    built = training._build(parts, len(plan.validation), config, Path("work"), {}, evaluate, processes, mixture, watch, print)
    return {**of_model(model), **of_plan(plan), **of_engine(parts), **of_trainer(built, watch), **of_steps(model, config)}


def of_model(model):
    seen = flat("model", {"length": model.max_seq_length, "weights": fingerprint(model), "modules": len(model)})
    seen |= flat("model", {"query_length": model[0].query_length, "passage_length": model[0].document_length})
    seen |= flat("model", {"pooling": pooling_name(model), "attention": model[0].model.config._attn_implementation})
    own = {module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and "lora" not in name}
    seen |= flat("model", {"dropout": sorted(own)})
    seen |= flat("model", {"trained": [name for name, weight in model.named_parameters() if weight.requires_grad]})
    return seen | flat("lora", lora(model))


def of_plan(plan):
    seen = flat("plan", {"files": plan.files, "train": plan.train, "dataset": plan.dataset and plan.dataset.name})
    return seen | flat("plan", {"final": plan.layout.final, "n_steps": plan.n_steps})


def of_engine(parts):
    batches, embedder, loss = parts.batches, parts.embedder, parts.loss
    books = [book for source in batches.readers for book in source.values()]
    prompts = [(role, book.reader.prompt) for source in batches.readers for role, book in source.items()]
    assert [reader for source in embedder.readers for reader in source.values()] == [book.reader for book in books]
    seen = flat("batches", {"prompts": prompts, "sources": list(batches.source_of), "folders": {book.folder for book in books}})
    seen |= flat("batches", {"negatives": batches.n_negatives, "seed": batches.seed, "noise": batches.noise})
    seen |= flat("batches", {"same_answer": batches.same_answer})
    seen |= flat("embedder", {"token_budget": embedder.token_budget, "memory": embedder.memory})
    seen |= flat("loss", {name: getattr(loss, name) for name in ("l1", "gather_from", "several_positives")})
    assert (loss.embedder, loss.batches) == (embedder, batches)
    return seen | flat("objective", settings(loss.objective))


def settings(objective):
    """The kind of an objective and what it is set to, those that it is made of among them."""
    seen = {"kind": [type(objective).__name__]}
    for field in fields(objective):
        value = getattr(objective, field.name)
        inner = settings(value) if is_dataclass(value) else {field.name: value}
        seen |= {**inner, "kind": [*seen["kind"], *inner.get("kind", [])]}
    return seen


def of_trainer(built, watch):
    seen = flat("args", built.args.to_dict())
    seen |= flat("run", {"kept": built.checkpoints_kept, "callbacks": callbacks(built), "epoch_saver": built.epoch_saver.every})
    seen |= flat("run", {"info": built.journal.model_info, "steps_per_epoch": built.journal.steps_per_epoch})
    dealt = {name.strip("_"): value for name, value in vars(built.sampler).items()} if built.sampler else {}
    seen |= flat("run", {"sampler": {**dealt, "lengths": None} if dealt else None, "lengths": dealt.get("lengths")})
    seen |= flat("run", {"meets": built.recovery.meets})
    assert watch in built.callback_handler.callbacks
    return seen | flat("watch", {"finetune_type": watch.finetune_type})


def of_steps(model, config):
    """How the model is computed while it trains."""
    with engine.made_fast(model, config):
        attention, types = model[0].model.config._attn_implementation, {str(one.dtype) for one in model.parameters()}
        return flat("steps", {"attention": attention, "types": sorted(types)})


def lora(model):
    """The adapter's configuration, by the names of our options, and all else of it as one."""
    adapters = getattr(model[0].model, "peft_config", None)
    if not adapters:
        return {}
    rest = adapters["default"].to_dict()
    ours = {name: rest.pop(name) for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    return {**ours, "target_modules": sorted(ours["target_modules"]), "rest": rest}


def callbacks(built):
    stopping = [
        (callback.early_stopping_patience, callback.early_stopping_threshold)
        for callback in built.callback_handler.callbacks
        if type(callback).__name__ == "EarlyStoppingCallback"
    ]
    return [*sorted(type(callback).__name__ for callback in built.callback_handler.callbacks), stopping]


# option → (another value, what must change; anything else that changes fails the test)
CHANGES = {
    "data_path": ("SUBSET", {"plan.files", "plan.train", "plan.n_steps", "run.steps_per_epoch", "batches.sources"}),
    "eval_dataset": ("EVALUATION", {"plan.dataset"}),
    "output_dir": ("elsewhere", {"plan.final"}),
    "finetune_type": (
        "full",
        {
            "lora.r",
            "lora.lora_alpha",
            "lora.lora_dropout",
            "lora.target_modules",
            "lora.rest",
            "model.weights",
            "model.trained",
            "plan.final",
            "run.info",
            "watch.finetune_type",
        },
    ),
    "pooling": ("cls", {"model.pooling"}),
    "attn_implementation": ("eager", {"model.attention", "steps.attention"}),
    "num_epochs": (3, {"args.num_train_epochs", "plan.n_steps"}),
    "max_steps": (7, {"args.max_steps", "plan.n_steps"}),
    "train_batch_size": (3, {"args.per_device_train_batch_size", "plan.n_steps", "run.steps_per_epoch"}),
    "eval_batch_size": (3, {"args.per_device_eval_batch_size"}),
    "learning_rate": (1e-3, {"args.learning_rate"}),
    "max_seq_length": (16, {"model.length"}),
    # One length set, the other is settled too: it no longer follows max_seq_length.
    "query_max_len": (16, {"model.query_length", "model.passage_length"}),
    "passage_max_len": (16, {"model.query_length", "model.passage_length"}),
    "prompt": ("both: ", {"batches.prompts"}),
    "query_prompt": ("q: ", {"batches.prompts"}),
    "passage_prompt": ("p: ", {"batches.prompts"}),
    "neg_nums": (1, {"batches.negatives"}),
    "temperature": (0.1, {"objective.temperature"}),
    "lora_r": (4, {"lora.r", "model.weights", "run.info"}),
    "lora_alpha": (16, {"lora.lora_alpha"}),
    "lora_dropout": (0.2, {"lora.lora_dropout"}),
    "target_modules": (["query"], {"lora.target_modules", "model.weights", "model.trained", "run.info"}),
    "weight_decay": (0.1, {"args.weight_decay"}),
    "model_dropout": (0.3, {"model.dropout"}),
    "l1_regularization": (0.1, {"loss.l1"}),
    "max_grad_norm": (0.5, {"args.max_grad_norm"}),
    "label_smoothing": (0.1, {"objective.label_smoothing"}),
    "validation_split": (0.5, {"plan.train", "plan.n_steps", "run.steps_per_epoch"}),
    "eval_steps": (7, {"args.eval_steps"}),
    "early_stopping_patience": (
        2,
        {"run.callbacks", "args.load_best_model_at_end", "args.metric_for_best_model", "args.greater_is_better"},
    ),
    "lr_scheduler_type": ("cosine", {"args.lr_scheduler_type"}),
    "warmup_ratio": (0.25, {"args.warmup_steps"}),
    "gradient_accumulation_steps": (2, {"args.gradient_accumulation_steps", "plan.n_steps", "run.steps_per_epoch"}),
    "gradient_checkpointing": (
        True,
        {f"args.{kind}_checkpointing{rest}" for kind in ("activation", "gradient") for rest in ("", "_kwargs")},
    ),
    "dataloader_num_workers": (1, {"args.dataloader_num_workers"}),
    # Frozen weights are multiplied in bfloat16 then; see ebr.model.compute.serving.
    "bf16": (True, {"args.bf16", "steps.types"}),  # auto is off on the processor that the tests pretend
    "seed": (7, {"args.seed", "batches.seed", "model.weights", "plan.train"}),
    "save_steps": (7, {"args.save_steps"}),
    "save_on_epoch_end": (2, {"run.epoch_saver"}),
    "save_total_limit": (5, {"run.kept"}),
    "report_to": (["none"], {"run.callbacks"}),
    "noise_enabled": (True, {"batches.noise"}),
    "loss": (
        "MultipleNegativesRankingLoss",
        {
            *(f"objective.{name}" for name in ("kind", "name", "loss", "arrange")),
            *(f"objective.{name}" for name in ("temperature", "label_smoothing", "bidirectional")),
        },
    ),
    "bidirectional": (True, {"objective.bidirectional"}),
    "same_answer": ("chain", {"batches.same_answer"}),
    "several_positives": (True, {"loss.several_positives"}),
    "matryoshka_dims": ([32, 8], {"objective.kind", "objective.dims"}),
    "group_by_length": (True, {"run.sampler", "run.lengths"}),
    "micro_batch_tokens": (500, {"embedder.token_budget"}),
    "activation_memory_gb": (0.5, {"embedder.memory"}),
    "token_cache": (False, {"batches.folders"}),
}
# Proved elsewhere, or only with another option on: name → where.
ELSEWHERE = {
    "forgetting_dataset": "test_model_card.py, with the report that it stands in",
    "model_name": "test_encoder.py",
    "new_token_learning_rate": "test_new_rows.py",
    "trust_remote_code": "test_trust_remote_code_reaches_the_loader",
    "base_model_path": "test_model_options.py",
    "quantization_bits": "test_train.py, and so does finetune_type qlora",
    "gather_negatives": "test_gathered_negatives_need_several_processes",
    "sources": "test_sources_reach_the_plan_the_readers_and_the_sampler",
    "teacher_temperature": "test_options_of_distillation_need_teacher_scores",
    "contrastive_weight": "test_options_of_distillation_need_teacher_scores",
    "early_stopping_threshold": "test_options_that_need_another_one",
    "noise_type": "test_options_that_need_another_one",
    "noise_prob": "test_options_that_need_another_one",
    "noise_apply_to_fields": "test_options_that_need_another_one",
    "dataloader_pin_memory": "test_pinned_memory_and_float16_need_a_gpu",
    "fp16": "test_pinned_memory_and_float16_need_a_gpu",
    "resume_from_checkpoint": "test_training.py",
}


@pytest.fixture(scope="module")
def observed():
    """What was observed of configs, by their record: most tests compare with the same one."""
    return {}


@pytest.fixture
def base(tiny_model, pairs_file, tmp_path_factory):
    """Options of a run on the thirty pairs, which lie in one place for all tests."""
    path = tmp_path_factory.getbasetemp() / "reach.json"
    path.write_bytes(pairs_file.read_bytes())
    return {"model_name": tiny_model, "data_path": str(path), "output_dir": "saved"}


@pytest.fixture
def plain(base, observed):
    """What a run with these options and no other is made of."""
    if "plain" not in observed:
        observed["plain"] = observe(FinetuneConfig(**base))
    return observed["plain"]


def changed(first, second):
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


def test_no_option_is_left_out():
    assert {*CHANGES, *ELSEWHERE} == set(FinetuneConfig.model_fields)
    assert not CHANGES.keys() & ELSEWHERE.keys()
    places = {where.split(",")[0] for where in ELSEWHERE.values()}
    assert {where for where in places if where not in globals() and not any(Path(__file__).parents[1].rglob(where))} == set()


def test_nothing_changes_by_itself(base, plain):
    assert changed(plain, observe(FinetuneConfig(**base))) == set()


@pytest.mark.parametrize("option", CHANGES)
def test_the_option_changes_its_consumer_and_nothing_else(base, plain, option, pairs_file, evaluation_folder):
    value, expected = CHANGES[option]
    if value == "SUBSET":
        value = str(pairs_file.with_name("subset.json"))
        Path(value).write_text(json.dumps(json.loads(pairs_file.read_text())[:10]))
    if value == "EVALUATION":
        value = str(evaluation_folder)
    assert changed(plain, observe(FinetuneConfig(**{**base, option: value}))) == expected


@pytest.mark.parametrize(
    ("switch", "option", "value", "expected"),
    [
        ({"early_stopping_patience": 2}, "early_stopping_threshold", 0.5, {"run.callbacks"}),
        ({"noise_enabled": True}, "noise_type", "char_delete", {"batches.noise"}),
        ({"noise_enabled": True}, "noise_prob", 0.5, {"batches.noise"}),
        ({"noise_enabled": True}, "noise_apply_to_fields", ["anchor"], {"batches.noise"}),
        ({"group_by_length": True}, "train_batch_size", 3, {*CHANGES["train_batch_size"][1], "run.sampler"}),
        ({"group_by_length": True}, "seed", 7, {*CHANGES["seed"][1], "run.sampler"}),
        ({"finetune_type": "full"}, "bf16", True, {"args.bf16"}),
        ({"matryoshka_dims": [8]}, "temperature", 0.1, {"objective.temperature"}),
    ],
)
def test_options_that_need_another_one(base, switch, option, value, expected):
    first = observe(FinetuneConfig(**base, **switch))
    assert changed(first, observe(FinetuneConfig(**base, **switch, **{option: value}))) == expected


def test_options_of_distillation_need_teacher_scores(base, pairs_file):
    records = [{**pair, "positive_score": 0.9, "negative_scores": [0.2]} for pair in json.loads(pairs_file.read_text())]
    pairs_file.write_text(json.dumps(records))
    base |= {"data_path": str(pairs_file), "loss": "distillation"}
    first = observe(FinetuneConfig(**base))
    for option in ("teacher_temperature", "contrastive_weight"):
        assert changed(first, observe(FinetuneConfig(**base, **{option: 0.5}))) == {f"objective.{option}"}
    assert changed(first, observe(FinetuneConfig(**base, temperature=0.5))) == {"objective.temperature"}


def test_sources_reach_the_plan_the_readers_and_the_sampler(base, plain, pairs_file, tmp_path):
    records = json.loads(pairs_file.read_text())
    for name, half in (("one", records[:20]), ("two", records[20:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(half))
    del base["data_path"]
    sources = [{"data_path": "one.json"}, {"data_path": "two.json"}]
    first = observe(FinetuneConfig(**base, sources=sources))
    # The same records in the same order. Every source has prompts; in batches of their own, 27 records may need one more.
    assert changed(plain, first) - {"plan.n_steps", "run.steps_per_epoch"} == {
        "plan.files", "batches.prompts", "batches.sources", "run.sampler",
    }  # fmt: skip
    assert first["plan.train"] == plain["plan.train"]
    own = {"query_prompt": "q: ", "passage_prompt": "p: "}
    prompted = observe(FinetuneConfig(**base, sources=[sources[0], {**sources[1], **own}]))
    assert changed(first, prompted) == {"batches.prompts"}
    wanted = [("query", ""), ("document", ""), ("query", "q: "), ("document", "p: ")]
    assert prompted["batches.prompts"] == repr(wanted)
    heavy = observe(FinetuneConfig(**base, sources=[sources[0], {**sources[1], "weight": 3}]))
    assert changed(first, heavy) == {"run.sampler", "plan.n_steps", "run.steps_per_epoch"}


def test_gathered_negatives_need_several_processes(base, plain):
    gathers = FinetuneConfig(**base, gather_negatives=True)
    assert changed(plain, observe(gathers)) == set()
    first, second = observe(FinetuneConfig(**base), TWO), observe(gathers, TWO)
    assert changed(first, second) == {"loss.gather_from", "run.meets"}
    assert (first["loss.gather_from"], second["loss.gather_from"]) == ("None", repr(TWO))


def test_two_processes_share_the_steps(base, plain):
    # 27 of the 30 records train, in batches of 6: 5 for one process, ceil(27 / 12) = 3 for each of two.
    two = observe(FinetuneConfig(**base), TWO)
    # On a CPU they share the memory that is free, too.
    assert changed(plain, two) == {"plan.n_steps", "run.steps_per_epoch", "embedder.memory"}
    assert (plain["plan.n_steps"], two["plan.n_steps"]) == ("5", "3")


@pytest.mark.parametrize(
    ("options", "query", "passage"),
    [
        ({"max_seq_length": 6}, 6, 6),
        ({"query_max_len": 4, "passage_max_len": 5}, 4, 5),
        ({"max_seq_length": 6, "query_max_len": 4}, 4, 6),
        ({"max_seq_length": 4, "passage_max_len": 6}, 4, 6),
    ],
)
def test_lengths_reach_the_tokens_of_a_batch(base, options, query, passage):
    config = FinetuneConfig(**base, **options)
    plan, model = plan_finetune(config), finetuning.load_for_training(config).model
    parts = engine.build_engine(model, plan.train, [], config, ids=plan.texts.ids, processes=ALONE, mixture=None, say=print)
    (group,) = parts.batches([{"row": 0}, {"row": 1}])["batch"].groups
    # Every text is longer: buy a small red shoe, the red small shoe! and [CLS], [SEP].
    lengths = group.prepared.lengths[np.argsort(group.places)]
    assert lengths.tolist() == [query] * 2 + [passage] * 4
    assert parts.lengths() == [query + passage] * len(plan.train), "of each row, its query and its first positive"


@pytest.mark.parametrize("option", ["dataloader_pin_memory", "fp16"])
def test_pinned_memory_and_float16_need_a_gpu(base, option, tmp_path, monkeypatch):
    import torch

    class Recorder:
        n_gpu = 1

        def __init__(self, **arguments):
            self.arguments = arguments

    monkeypatch.setattr(arguments, "SentenceTransformerTrainingArguments", Recorder)
    seen = [
        arguments.training_arguments(
            FinetuneConfig(**base, **{option: value}),
            tmp_path,
            10,
            device=torch.device("cuda"),
            validates=False,
            retrieves=False,
        ).arguments[option]
        for value in (True, False)
    ]
    assert seen == [True, False]


@pytest.mark.parametrize("trusted", [True, False])
def test_trust_remote_code_reaches_the_loader(base, trusted, monkeypatch):
    from ebr.model.encoder import encoder

    seen = {}

    class Recorder:
        def __init__(self, *_, **options):
            seen.update(options)
            raise RuntimeError("seen enough")

    monkeypatch.setattr(encoder, "SentenceTransformer", Recorder)
    with pytest.raises(encoder.ModelError, match="seen enough"):
        finetuning.load_for_training(FinetuneConfig(**base, trust_remote_code=trusted))
    assert seen["trust_remote_code"] is trusted


# ---------------------------------------------------------------- maps


@pytest.fixture
def vector_file(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["id\x01label\x01other\x01vector"]
    for row in range(40):
        label = "甲乙"[row % 2]
        lines.append(f"{row}\x01{label}\x01o{row % 4}\x01{' '.join(map(str, rng.normal(size=8) + row % 2))}")
    path = tmp_path / "vectors.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def look(monkeypatch, config):
    """What the projections, the cache and the forms of a map are asked for."""
    from ebr.visualization.map import atlas
    from ebr.visualization.map import cache as map_cache
    from ebr.visualization.page import page
    from ebr.visualization.picture import plot as map_plot
    from ebr.visualization.project import placement, projection

    seen = {}

    def project(name):
        def projected(vectors, *, neighbours=None, **settings):
            seen.update({f"{name}.{key}": value for key, value in settings.items()}, **{f"{name}.rows": len(vectors)})
            return projection.Projection(name, np.ascontiguousarray(vectors[:, :2]), {})

        return projected

    def draw(projections, column, path, **settings):
        seen.update({"labels": sorted(set(column.texts)), "kind": column.numbers is not None, "path": path})
        seen.update({f"draw.{key}": settings[key] for key in ("title", "preferred_fonts", "seed", "theme", "language")})
        seen["panels"] = settings["panel_titles"]

    def write_page(path, content):
        seen.update({"page": path, "ids": content.ids[0], "texts": content.texts[0]})

    for name in ("tsne", "umap", "pca"):
        monkeypatch.setattr(projection, f"project_{name}", project(name))
    monkeypatch.setattr(map_plot, "draw_maps", draw)
    monkeypatch.setattr(page, "write_map_page", write_page)
    monkeypatch.setattr(atlas, "write_atlas", lambda path, *_, **__: seen.update(atlas=path))
    monkeypatch.setattr(map_cache.MapCache, "store", lambda *_: seen.update(kept=True))
    place = placement.place_by_neighbours
    monkeypatch.setattr(placement, "place_by_neighbours", lambda *a, **k: seen.update(placed=len(a[2])) or place(*a, **k))
    visualize_embeddings(config, say=lambda _: None)
    return seen


PROJECTIONS = {f"{name}.rows" for name in ("tsne", "umap")}
SEEDS = {"tsne.seed", "umap.seed", "draw.seed"}
T_SNE = {f"tsne.{key}" for key in ("perplexity", "learning_rate", "engine", "initialization", "reproducible", "seed", "rows")}
UMAP = {f"umap.{key}" for key in ("n_neighbors", "min_dist", "initialization", "reproducible", "seed", "rows")}
BEFORE = {"panels", "tsne.initialization", "pca.rows", "pca.seed", *UMAP}  # one method, from a start that both maps share
MAP_CHANGES = {
    "before_path": ("vectors.txt", BEFORE),
    "label_column": ("other", {"labels", "texts"}),  # the text is the longest column that is left
    "label_kind": ("categories", {"kind"}),
    "id_column": ("other", {"ids", "texts"}),
    "text_column": ("id", {"texts"}),
    "method": ("umap", {*T_SNE, "panels"}),
    "tsne_engine": ("sklearn", {"tsne.engine"}),
    "tsne_perplexity": (5.0, {"tsne.perplexity"}),
    "tsne_learning_rate": (50.0, {"tsne.learning_rate"}),
    "umap_neighbors": (5, {"umap.n_neighbors"}),
    "umap_min_dist": (0.5, {"umap.min_dist"}),
    "mode": ("fast", {"tsne.reproducible", "umap.reproducible"}),
    "max_points": (20, {*PROJECTIONS, "ids"}),
    "title": ("another", {"draw.title"}),
    "theme": ("dark", {"draw.theme"}),
    "language": ("zh", {"draw.language"}),
    "chinese_fonts": (["SimHei"], {"draw.preferred_fonts"}),
    "output_path": ("other.png", {"path", "page"}),
    "page": (False, {"page", "ids", "texts"}),
    "export": ("atlas", {"atlas"}),
    "cache": (False, {"kept"}),
    "seed": (7, SEEDS),
}


def test_no_map_option_is_left_out():
    apart = {"embeddings_path", "delimiter", "vector_column", "over_max_points"}  # each has tests of its own
    assert {*MAP_CHANGES, *apart} == set(VisualizationConfig.model_fields)


@pytest.mark.parametrize("option", MAP_CHANGES)
def test_the_map_option_changes_its_consumer_and_nothing_else(vector_file, option, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    monkeypatch.chdir(tmp_path)
    value, expected = MAP_CHANGES[option]
    base = {"embeddings_path": str(vector_file), "output_path": str(tmp_path / "map.png")}
    base |= {"label_column": "id"} if option == "label_kind" else {}
    first = look(monkeypatch, VisualizationConfig(**base))
    second = look(monkeypatch, VisualizationConfig(**{**base, option: value}))
    assert changed({k: repr(v) for k, v in first.items()}, {k: repr(v) for k, v in second.items()}) == expected


def test_a_foreign_vector_file_may_have_another_delimiter(vector_file, tmp_path, monkeypatch):
    other = tmp_path / "other.txt"
    other.write_text(vector_file.read_text(encoding="utf-8").replace("\x01", "\t"), encoding="utf-8")
    config = VisualizationConfig(embeddings_path=other, delimiter="\\t", output_path=tmp_path / "map.png")
    assert look(monkeypatch, config)["labels"] == ["乙", "甲"]


def test_a_map_takes_the_vectors_of_the_column_that_is_named(vector_file, tmp_path, monkeypatch):
    text = vector_file.read_text(encoding="utf-8").replace("vector\n", "a_emb\x01b_emb\n").replace("\n", "\x011 2\n")
    vector_file.write_text(text.replace("b_emb\x011 2", "b_emb"), encoding="utf-8")
    found = {}
    for name in ("a_emb", "b_emb"):
        config = VisualizationConfig(embeddings_path=vector_file, before_path=vector_file, vector_column=name, method="pca")
        _, found[name] = look(monkeypatch, config), plan_visualization(config).rows
    assert [(rows.vectors.shape, rows.before.shape) for rows in found.values()] == [((40, 8),) * 2, ((40, 2),) * 2]


@pytest.mark.parametrize("suffix", ["txt", "parquet", "npy"])
def test_a_map_reads_every_format_and_a_null_label_is_none(suffix, tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    write_embeddings(tmp_path / f"v.{suffix}", {"label": ["甲", None] * 20}, vectors)
    config = VisualizationConfig(embeddings_path=tmp_path / f"v.{suffix}", output_path=tmp_path / "map.png")
    assert look(monkeypatch, config)["labels"] == ["", "甲"]


def test_a_map_reads_a_folder_of_parts(vector_file, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    (tmp_path / "parts").mkdir()
    for part in ("000000_0", "000001_0"):
        (tmp_path / "parts" / part).write_bytes(vector_file.read_bytes())
    config = VisualizationConfig(embeddings_path=tmp_path / "parts", output_path=tmp_path / "map.png")
    assert look(monkeypatch, config)["tsne.rows"] == 80


# ---------------------------------------------------------------- a map of queries

ADAPT_CHANGES = {
    # option: (another value, what changes)
    "model_name": ("other", {"model.weights", "map"}),
    "data_path": ("other", {"plan.files", "plan.train", "plan.held_out", "map"}),
    "output_path": (Path("other"), {"plan.output"}),
    "eval_dataset": ("evaluation", {"plan.dataset"}),
    "query_prompt": ("query ", {"model.prompts", "map"}),
    "passage_prompt": ("passage ", {"model.prompts", "map"}),
    "max_seq_length": (5, {"model.length", "map"}),
    "trust_remote_code": (True, {"model.trusted"}),
    "pooling": ("cls", {"model.pooling", "map"}),
    "batch_size": (3, {"encoder.batch_size"}),
    "train_batch_size": (4, {"map"}),
    "learning_rate": (1e-2, {"map"}),
    "towards_identity": (5.0, {"map"}),
    "max_steps": (7, {"steps", "map"}),
    "temperature": (0.5, {"map"}),
    "neg_nums": (0, {"map"}),
    "same_answer": ("chain", {"plan.same_answer", "map"}),
    "validation_split": (0.5, {"plan.train", "plan.held_out", "map"}),
    "seed": (7, {"plan.train", "plan.held_out", "map"}),
}


def of_adaptation(config, monkeypatch):
    """Everything that a map of queries is made of, with the map after all of its steps."""
    seen, looks = {}, count()  # each look is better than the one before: the map is that of the last step
    encoder_of, load = local_engine.RetrievalEncoder, encoder.load_encoder

    def noting_batch(model, **options):
        seen["encoder.batch_size"] = options["batch_size"]
        return encoder_of(model, **{**options, "batch_size": None})  # rounding would be another

    def noting_trust(name, *, trust_remote_code, **options):
        seen["model.trusted"] = trust_remote_code
        return load(name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(local_engine, "RetrievalEncoder", noting_batch)
        patch.setattr(encoder, "load_encoder", noting_trust)
        patch.setattr(query_map.HeldOut, "is_surely_better_than", lambda self, other: True)
        patch.setattr(
            query_map, "_look", lambda weight, batch: query_map.HeldOut(-torch.tensor([float(next(looks))]), weight[0])
        )
        patch.setattr(query_map, "_STEPS_A_LOOK", 1)
        plan = plan_adapt(config)
        base = adapting._load(config, plan)
        found, _ = adapting._learned(plan, base.model, lambda line: None)
    seen |= {"steps": found.n_steps, "map": found.weight.numpy().tobytes()}
    seen |= {f"plan.{name}": getattr(plan, name) for name in ("files", "train", "held_out", "same_answer", "output")}
    seen |= {"plan.dataset": plan.dataset and plan.dataset.name, "model.weights": base.sha256, "model.pooling": base.pooling}
    return seen | {"model.prompts": base.prompts, "model.length": base.max_seq_length}


@pytest.mark.parametrize("option", ADAPT_CHANGES)
def test_every_option_of_a_map_of_queries_reaches_its_consumer(
    option, tiny_model, pairs_file, evaluation_folder, tmp_path, monkeypatch
):
    value, expected = ADAPT_CHANGES[option]
    records = json.loads(pairs_file.read_text(encoding="utf-8"))
    # Two records of one query share an answer with a third by a chain alone.
    records += [{"anchor": records[0]["anchor"], "positive": records[1]["positive"]}]
    pairs_file.write_text(json.dumps(records), encoding="utf-8")
    if option == "data_path":
        value = tmp_path / "other.json"
        value.write_text(json.dumps(records[:20]), encoding="utf-8")
    elif option == "model_name":
        value = save_encoder_of(tiny_model, tmp_path / "other", behind=(Normalize(),))
        weights = load_file(value / "model.safetensors")
        save_file({name: weight * 1.01 for name, weight in weights.items()}, value / "model.safetensors", {"format": "pt"})
    value = evaluation_folder if option == "eval_dataset" else value
    base = {"model_name": tiny_model, "data_path": str(pairs_file), "output_path": "adapted", "max_steps": 12}
    changes = {option: str(value) if option in ("data_path", "model_name") else value}
    first, second = (of_adaptation(AdaptConfig(**{**base, **one}), monkeypatch) for one in ({}, changes))
    assert {name for name in first if first[name] != second[name]} == expected


def test_no_option_of_a_map_of_queries_is_forgotten():
    assert set(ADAPT_CHANGES) == set(AdaptConfig.model_fields)
