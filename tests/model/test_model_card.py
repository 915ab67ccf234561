"""The model card: its figures are the report's, its front matter is the hub's, and nothing private or foreign stands in it."""

import json
import logging
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import mistune
import pytest
from huggingface_hub import ModelCard, ModelCardData
from sentence_transformers import SentenceTransformer

from ebr.config import FinetuneConfig, TrainConfig
from ebr.data.files.write import read_json, read_manifest, write_json
from ebr.data.text.markdown import as_markdown, code_cell
from ebr.data.training.examples import Example
from ebr.data.training.languages import writing_of
from ebr.model import origin
from ebr.model.base_card import base_card
from ebr.model.card import model_card
from ebr.model.origin import ModelOrigin, Origin, public_name, resolve_model
from ebr.workflow.finetuning import train_sentence_transformer
from tests.conftest import REPO
from tests.lora_adapters import merge, save_tuned

HEADLINES = {"nDCG@10": "ndcg@10", "MRR@10": "mrr@10", "Recall@10": "recall@10", "Recall@100": "recall@100"}
BASES_CARD = """---
license: other
license_name: <b>tiny</b>
license_link: https://example.org/a(b)
tags: [of-the-base]
model-index: wrong
---
# THE CARD OF THE BASE
"""


def silent(line):
    """Where lines for people go that nobody looks at."""


def write_set(folder, documents, queries):
    folder.mkdir()
    for file, texts, kind in (("corpus", documents, "d"), ("queries", queries, "q")):
        lines = [json.dumps({"_id": f"{kind}{row}", "text": text}) for row, text in enumerate(texts)]
        (folder / f"{file}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = ["query-id\tcorpus-id\tscore", *(f"q{row}\td{row}\t1" for row in range(len(queries)))]
    (folder / "qrels.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder whose path nobody but its user should see."""
    return tmp_path_factory.mktemp("secretive")


@pytest.fixture(scope="module")
def base(tiny_model, place):
    """A model with a card of its own, under a name that is markup."""
    folder = place / "tiny_|<script>"
    shutil.copytree(tiny_model, folder)
    (folder / "README.md").write_text(BASES_CARD, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def options(base, place):
    """A short run on records in two languages, with sets to evaluate on whose names are markup."""
    colours = ["red", "blue", "green"]
    records = [
        {"anchor": f"buy the {size} {colour} shoe", "positive": f"the {colour} {size} shoe"}
        for size in ("small", "large", "new", "old")
        for colour in colours
    ]
    records += [{"anchor": "这是一个大国", "positive": "一个大的国"}] * 4
    data = place / "pairs|<script>alert(1)<script>.json"
    data.write_text(json.dumps(records), encoding="utf-8")
    documents = [f"{thing} {colour}" for thing in ("cup", "book", "lamp") for colour in colours]
    return {
        "model_name": str(base), "data_path": str(data), "output_dir": place / "saved", "max_steps": 2, "max_seq_length": 16,
        "learning_rate": 1e-2, "report_to": ["none"], "validation_split": 0.25, "query_prompt": "find | `this`: ",
        "eval_dataset": write_set(place / "eval_*|<script>", documents, [f"a {text}" for text in documents[:5]]),
        "forgetting_dataset": write_set(place / "news", documents[4:], ["blue cup", "red lamp", "a book"]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(options):
    lines = []
    return train_sentence_transformer(FinetuneConfig(**options), say=lines.append), lines


@pytest.fixture(scope="module")
def adapter(trained):
    return trained[0].model_path


@pytest.fixture(scope="module")
def merged(base, adapter, place):
    return merge(base, adapter, output_path=place / "shoes")[0].model_path


@pytest.fixture(scope="module")
def full(options, place):
    """By the other front end, without an evaluation set."""
    rest = {**options, "output_dir": place / "other", "finetune_type": "full", "train_batch_size": 4}
    rest |= {
        "eval_dataset": None,
        "forgetting_dataset": None,
        "max_seq_length": 256,
        "query_max_len": 8,
        "passage_max_len": 16,
        "save_steps": 1,
    }
    return train_sentence_transformer(TrainConfig(**rest), say=silent).model_path


@pytest.fixture(params=["adapter", "merged", "full"])
def model(request):
    """Each kind of model that gets a card."""
    return request.getfixturevalue(request.param)


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def rendered(text):
    """HTML, as a page would show it that lets raw HTML pass."""
    return mistune.create_markdown(escape=False, plugins=["table"])(text)


def body(text):
    return ModelCard(text).text


# ---------------------------------------------------------------- what the hub reads


def test_front_matter_is_what_the_hub_understands(model):
    data = ModelCard(card_of(model)).data
    assert isinstance(data, ModelCardData)
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert set(data.language) == {"en", "zh"}
    assert {"sentence-transformers", "ebr"} <= set(data.tags) and "of-the-base" not in data.tags
    assert (data.license, data.license_name, data.license_link) == ("other", "<b>tiny</b>", "https://example.org/a(b)")
    assert data.base_model is None  # a folder is no id of the hub


def test_figures_of_the_front_matter_and_the_table_are_those_of_the_report(adapter):
    metrics = read_json(adapter / "report.json")["comparisons"][0]["metrics"]
    card = card_of(adapter)
    listed = {one.metric_name: one for one in ModelCard(card).data.eval_results}
    assert {name: one.metric_value for name, one in listed.items()} == {
        name: round(metrics[metric]["tuned"], 4) for name, metric in HEADLINES.items()
    }
    assert listed["nDCG@10"].dataset_name == "eval_*|<script>"
    for name, metric in HEADLINES.items():
        found = metrics[metric]
        cells = [f"{found['base']:.4f}", f"{found['tuned']:.4f}", f"{found['difference']:+.4f}"]
        cells += [f"{found['low']:+.4f} to {found['high']:+.4f}", f"{found['p']:.4f}"]
        assert f"| {name} | {' | '.join(cells)} |\n" in card
    assert "5 queries over 9 documents of" in card


def test_forgetting_is_measured_before_and_after_and_is_in_report_card_and_summary(adapter, trained):
    forgetting = read_json(adapter / "report.json")["forgetting"]
    found = forgetting["comparisons"][0]["metrics"]["ndcg@10"]
    assert (forgetting["dataset"]["name"], forgetting["dataset"]["n_documents"]) == ("news", 5)
    _, part = card_of(adapter).split("### Forgetting\n")
    assert "3 queries over 5 documents of news." in part
    assert f"| nDCG@10 | {found['base']:.4f} | {found['tuned']:.4f} |" in part
    assert "that was not measured" not in card_of(adapter)
    assert "forgetting, on news:" in trained[0].summary()
    assert any(line.startswith("forgetting: 3 queries, 5 documents") for line in trained[1])
    assert [line for line in trained[1] if line.startswith("base: ") and line.endswith(" on news")]


def test_a_merged_model_shows_what_its_adapter_was_measured_at_but_claims_no_measurement(adapter, merged):
    own = next(line for line in card_of(adapter).splitlines() if line.startswith("| nDCG@10"))
    assert own in card_of(merged)
    assert "measured on base and adapter before they were merged" in card_of(merged)
    assert ModelCard(card_of(merged)).data.eval_results is None


def test_a_merge_into_another_base_than_that_of_training_shows_no_figures(base, adapter, tmp_path):
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    write_json(copy / "ebr_manifest.json", {**read_manifest(copy), "base_sha256": "0" * 64})
    result, lines = merge(base, copy)
    assert any("is not the base that the adapter was trained on" in line for line in lines)
    assert "| nDCG@10" not in card_of(result.model_path)
    assert "not measured" in card_of(result.model_path)


def test_a_model_that_was_not_measured_says_so(full):
    assert "Whether it retrieves better than its base was not measured." in card_of(full)
    assert ModelCard(card_of(full)).data.eval_results is None


# ---------------------------------------------------------------- what does not stand in it


def test_nothing_of_the_bases_card_is_copied(model):
    assert "THE CARD OF THE BASE" not in card_of(model)


def test_no_checkpoint_has_the_bases_card(adapter, full, options):
    checkpoints = [*full.parent.glob("checkpoint-*"), *adapter.parent.glob("*.run/checkpoint-*")]
    assert checkpoints
    assert not [path for path in checkpoints if (path / "README.md").exists()]


def test_no_text_of_the_data_and_no_place_on_this_machine_stands_in_it(model, place):
    card = card_of(model)
    for text in ("red shoe", "cup", "这是一个大国", str(place), place.name, "secretive", str(Path.home())):
        assert text not in card


def test_names_from_elsewhere_are_shown_as_they_are_and_are_no_markup(model):
    html = rendered(body(card_of(model)))
    assert "<script" not in html and "<b>tiny" not in html
    assert "tiny_|&lt;script&gt;" in html
    assert "pairs|&lt;script&gt;alert(1)&lt;script&gt;.json" in html
    assert 'href="https://example.org/a%28b%29"' in html


def test_a_prompt_is_shown_to_the_last_space_in_a_cell_of_its_own(adapter):
    row = next(line for line in card_of(adapter).splitlines() if line.startswith("| prompt"))
    assert row == r'| prompt | ``"find \| `this`: "`` | none |'
    assert "<td>none</td>" in rendered(body(card_of(adapter)))


@pytest.mark.parametrize(
    "text", ["a|b", "*a*", "_a_", "[a](javascript:x)", "`a`", "<i>a</i>", "a\\|b", "~~a~~", "![a](b)", "&lt;", "a_b_c", "__a__"]
)
def test_escaped_text_is_rendered_as_it_was(text):
    import html

    (cell,) = re.findall(r"<td>(.*?)</td>", rendered(f"| h |\n|---|\n| {as_markdown(text)} |\n"))
    assert html.unescape(cell) == text


def test_escaped_text_is_one_line():
    assert as_markdown("a\n# b\r\n\x1b c") == "a # b c"


def test_no_text_turns_the_direction_of_what_follows_it():
    assert (as_markdown("lab\u202e14"), code_cell("lab\u206714")) == ("lab\ufffd14", '`"lab\ufffd14"`')


def test_a_quoted_text_cannot_end_its_code():
    assert code_cell("a``b") == '```"a``b"```'
    assert code_cell("x\ny") == '`"x\\ny"`'


# ---------------------------------------------------------------- what does


def test_the_usage_in_the_card_loads_the_model(model):
    (code,) = re.findall(r"```python\n(.*?)```", card_of(model), re.DOTALL)
    scope = {}
    exec(code.replace("sentence_transformers_model_id", str(model)).replace("print(", "shown = ("), scope)
    assert scope["shown"].shape == (2, 2)


class Hub:
    """In place of HfApi: keeps what it is given."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, **_):
        return self

    def create_repo(self, *, repo_id, **_):
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, folder_path, **_):
        shutil.copytree(folder_path, self.folder)
        return SimpleNamespace(commit_url="")


def test_what_the_page_on_publishing_uploads_is_the_model_and_its_card(adapter, tmp_path, monkeypatch):
    pages = [(REPO / "docs" / name).read_text(encoding="utf-8") for name in ("publishing.md", "publishing.zh.md")]
    (push, name_base), chinese = (re.findall(r"```python\n(.*?)```", page, re.DOTALL) for page in pages)
    assert chinese == [push, name_base]
    hub = Hub(tmp_path / "pushed")
    monkeypatch.setattr("sentence_transformers.base.model.HfApi", hub)
    load, upload = push.replace("/srv/models/tuned", str(adapter)).split("model.push_to_hub")
    exec(f"{load}{name_base}model.push_to_hub{upload}", {})
    assert card_of(hub.folder) == card_of(adapter).replace("sentence_transformers_model_id", "you/tuned")
    settings = read_json(hub.folder / "adapter_config.json")
    assert settings["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    names = {path.name for path in hub.folder.rglob("*")}
    assert "adapter_model.safetensors" in names
    assert not names & {"ebr_manifest.json", "report.json", "report.html", "training_config.json", "training_log.json"}


def test_the_files_that_hf_upload_leaves_out_are_those_that_are_private(adapter, place):
    excluded = re.findall(r'--exclude "(.*?)"', (REPO / "docs" / "publishing.md").read_text(encoding="utf-8"))
    left = [path for path in adapter.iterdir() if not any(fnmatch(path.name, pattern) for pattern in excluded)]
    assert {"README.md", "adapter_model.safetensors", "modules.json", "tokenizer.json"} <= {path.name for path in left}
    texts = {path.name: path.read_text("utf-8", "replace") for path in left if path.is_file()}
    assert {name for name, text in texts.items() if place.name in text} == {"adapter_config.json"}  # see the line before it
    assert not [name for name, text in texts.items() if "red shoe" in text]


def test_an_adapter_says_that_it_needs_peft_and_its_base(adapter, merged, full):
    assert "pip install -U sentence-transformers peft\n" in card_of(adapter)
    assert "base_model_name_or_path" in card_of(adapter)
    for whole in (merged, full):
        assert "pip install -U sentence-transformers\n" in card_of(whole)
        assert "base_model_name_or_path" not in card_of(whole)


def test_hashes_and_counts_are_those_of_the_manifests(adapter, merged):
    own, first = read_manifest(merged), read_manifest(adapter)
    card = card_of(merged)
    for digest in (own["model_sha256"], own["base_sha256"], own["adapter_sha256"], first["data_sha256"]):
        assert f"`{digest}`" in card
    assert f"- Records: {first['n_train']}, and {first['n_validation']} held out for validation\n" in card
    assert (first["n_train"], first["n_validation"], first["data"]) == (
        12,
        4,
        [{"name": "pairs|<script>alert(1)<script>.json"}],
    )
    assert "Steps: 2\n" in card
    assert "ebr 0.1.0" in card or f"ebr {own['versions']['ebr']}" in card


def test_the_leak_check_of_training_stands_beside_the_figures(adapter):
    assert "\nLeak check: no evaluation query among" in card_of(adapter)


def test_options_that_were_chosen_are_listed_and_places_are_not(adapter, full):
    assert "| `max_steps` | 2 |\n" in card_of(adapter) and "| `num_epochs`" not in card_of(adapter)
    assert "| `lora_r` | 8 |\n" in card_of(adapter) and "`lora_r`" not in card_of(full)
    places = [name for name, field in FinetuneConfig.model_fields.items() if "path" in str(field.annotation).lower()]
    assert not [name for name in (*places, "data_path", "model_name", "sources") if f"| `{name}` |" in card_of(adapter)]


def test_an_adapter_made_elsewhere_is_merged_with_a_card_that_knows_nothing_of_its_training(base, tmp_path):
    result, _ = merge(base, save_tuned(str(base), tmp_path / "theirs")[0])
    card = card_of(result.model_path)
    assert "What it was tuned on is not recorded with the adapter." in card
    assert ModelCard(card).data.language is None


def test_a_report_that_cannot_be_read_costs_the_card_and_not_the_merge(base, adapter, tmp_path):
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    (copy / "report.json").write_text("{", encoding="utf-8")
    result, lines = merge(base, copy)
    assert any(line.startswith("warning: the model's card is left out") for line in lines)
    assert not (result.model_path / "README.md").exists()


def test_the_manifest_of_an_earlier_version_gives_a_card(adapter):
    later = {"base_card", "data", "languages", "n_steps", "scripts", "total_parameters", "trainable_parameters", "weights_step"}
    manifest = read_manifest(adapter)
    earlier = {name: value for name, value in manifest.items() if name not in later}
    card = model_card("old", {**manifest, "adapter_sha256": "0"}, earlier, None)
    assert "- Records: 12" in card and "Writing" not in card


# ---------------------------------------------------------------- the base


def test_the_embedded_model_and_models_of_the_hub_are_named_by_their_ids(tiny_model):
    embedded = base_card(resolve_model("all-MiniLM-L6-v2"))
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert embedded == {"name": name, "hub_id": name, "license": "apache-2.0"}
    hub = ModelOrigin("somebody/model", Origin.HUB, "somebody/model")
    assert base_card(hub) == {"name": "somebody/model", "hub_id": "somebody/model"}
    manifest = {"base_card": embedded, "adapter_sha256": "0", **FACTS}
    data = ModelCard(model_card("m", manifest, {}, None)).data
    assert (data.base_model, data.base_model_relation, data.license) == (name, "finetune", "apache-2.0")
    adapted = ModelCard(model_card("m", {"base_card": embedded, **FACTS}, {}, None)).data
    assert adapted.base_model_relation == "adapter"


FACTS = {
    "config": {}, "prompts": {}, "similarity": "cosine", "pooling": "mean", "dim": 8, "max_seq_length": None,
    "query_max_len": None, "passage_max_len": None, "versions": {"ebr": "1"}, "model_sha256": "0",
}  # fmt: skip


@pytest.mark.parametrize(
    "card", ["", "no front matter", "---\nlicense: [a\n---\n", "---\nlicense: 3\n---\n", "---\n- a\n---\n"]
)
def test_a_base_whose_card_says_nothing_has_an_unknown_licence(tmp_path, card):
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    known = base_card(ModelOrigin("m", Origin.FOLDER, str(tmp_path)))
    assert set(known) == {"name"}
    assert "Of the base: unknown" in model_card("m", {"base_card": known, **FACTS}, {}, None)


def test_a_licence_file_beside_the_bases_card_is_linked_where_the_base_is(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_link: LICENSE\n---\n", encoding="utf-8")
    monkeypatch.setattr("ebr.model.base_card.try_to_load_from_cache", lambda *_: str(tmp_path / "README.md"))
    known = base_card(ModelOrigin("a/b", Origin.HUB, "a/b"))
    assert known["license_link"] == "https://huggingface.co/a/b/blob/main/LICENSE"


def test_a_folder_right_in_the_users_home_is_not_called_after_the_user(monkeypatch, tmp_path):
    monkeypatch.setattr(origin.Path, "home", lambda: tmp_path / "alice")
    assert public_name(tmp_path / "alice" / "final") == "final"
    assert public_name(tmp_path / "alice" / "shoes" / "final") == "shoes-final"


# ---------------------------------------------------------------- languages


@pytest.mark.parametrize(
    ("texts", "languages", "script"),
    [
        (["how to sort an array", "the sorted copy"], ("en",), "Latin"),
        (["wie sortiert man eine Liste", "eine sortierte Kopie"], (), "Latin"),
        (["红色的鞋", "Nike 运动鞋 红色"], ("zh",), "Han"),
        (["赤い靴をください", "小さな赤い靴"], ("ja",), "Kana"),
        (["빨간 신발", "작은 신발"], ("ko",), "Hangul"),
        (["красные туфли", "маленькие туфли"], (), "Cyrillic"),
        (["12345", "!?"], (), None),
    ],
)
def test_languages_are_told_only_where_they_are_sure(texts, languages, script):
    found = writing_of([Example(texts[0], (texts[1],))])
    assert found.languages == languages
    assert next(iter(found.scripts), None) == script


def test_of_many_records_some_are_looked_at_all_over():
    examples = [Example("red the shoe", ("shoe",))] * 5_000 + [Example("红色的鞋", ("鞋",))] * 5_000
    assert set(writing_of(examples).languages) == {"en", "zh"}


def test_a_model_is_saved_without_a_word_of_the_library_about_its_card(adapter, caplog):
    with caplog.at_level(logging.ERROR):
        SentenceTransformer(str(adapter), device="cpu")
    assert not caplog.records
