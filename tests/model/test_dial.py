"""The dial of a merge: base + α · (mean of the tunings − base), exact at both ends, chosen on an evaluation set where asked."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from ebr.cli import main
from ebr.config import MergeConfig
from ebr.data.files.write import write_json
from ebr.errors import ConfigError, ModelError
from ebr.model.files.identity import fingerprint
from ebr.model.merge_plan import plan_merge
from ebr.retrieval.evaluation.leak_check import Provenance
from ebr.retrieval.evaluation.weight_search import WEIGHTS, best_weight
from ebr.workflow.merging import merge_adapter
from tests.lora_adapters import WEIGHTS as ADAPTER
from tests.lora_adapters import merge, refuse, save_tuned, vectors

FILE = "model.safetensors"


@pytest.fixture
def adapter(tiny_model, tmp_path):
    return save_tuned(tiny_model, tmp_path / "adapter")[0]


def weights(folder):
    return load_file(folder / FILE)


def equal(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def merged(base, output, **options):
    """The result of a merge, what was said, and its weights."""
    lines = []
    config = MergeConfig(base_model_path=str(base), output_path=output, **options)
    result = merge_adapter(config, say=lines.append)
    return result, lines, weights(result.model_path)


def another(adapter, folder, base, factor):
    """A copy of an adapter whose B is another by a factor, with a manifest that names the base."""
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / ADAPTER)
    save_file({name: tensor * (factor if "lora_B" in name else 1) for name, tensor in tensors.items()}, folder / ADAPTER)
    return recorded(folder, base)


def recorded(folder, base, **more):
    write_json(folder / "ebr_manifest.json", {"base_sha256": fingerprint(SentenceTransformer(base, device="cpu")), **more})
    return folder


def test_both_ends_are_the_base_and_the_merge_of_today_to_the_bit(tiny_model, adapter, tmp_path):
    whole = weights(merge(tiny_model, adapter)[0].model_path)
    base = load_file(f"{tiny_model}/{FILE}")
    assert not equal(whole, base)
    assert equal(merged(tiny_model, tmp_path / "0", lora_adapter_path=adapter, weight=0)[2], base)
    assert equal(merged(tiny_model, tmp_path / "1", lora_adapter_path=adapter, weight=1)[2], whole)
    # On the dial too, which a single adapter with weight 1 does not need.
    copies = [recorded(adapter, tiny_model), another(adapter, tmp_path / "copy", tiny_model, 1)]
    assert equal(merged(tiny_model, tmp_path / "mean", adapters=[str(one) for one in copies])[2], whole)


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}, {"modules_to_save": ["pooler"]}])
def test_a_part_lies_between_base_and_merge_whatever_the_adapter_is(tiny_model, tmp_path, lora):
    adapter = save_tuned(tiny_model, tmp_path / "adapter", **lora)[0]
    whole, base = weights(merge(tiny_model, adapter)[0].model_path), load_file(f"{tiny_model}/{FILE}")
    result, lines, part = merged(tiny_model, tmp_path / "part", lora_adapter_path=adapter, weight=0.25)
    for name, tensor in part.items():
        torch.testing.assert_close(tensor, base[name] + 0.25 * (whole[name] - base[name]), atol=1e-6, rtol=0)
    assert any(not torch.equal(part[name], base[name]) for name in part)
    assert result.smallest_cosine > 0.999999
    assert "weight  0.25" in lines


def test_a_part_of_a_plain_adapter_is_the_adapter_scaled(tiny_model, adapter, tmp_path):
    scaled = shutil.copytree(adapter, tmp_path / "scaled")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    write_json(scaled / "adapter_config.json", {**settings, "lora_alpha": settings["lora_alpha"] // 4})
    part = merged(tiny_model, tmp_path / "part", lora_adapter_path=adapter, weight=0.25)[0].model_path
    np.testing.assert_allclose(vectors(part), vectors(scaled), atol=1e-5)


def test_several_adapters_are_merged_as_their_mean(tiny_model, adapter, tmp_path):
    recorded(adapter, tiny_model)
    # B, 2 B and 3 B have the mean 2 B; half of it is B.
    group = [adapter, *(another(adapter, tmp_path / str(factor), tiny_model, factor) for factor in (2, 3))]
    names = [str(one) for one in group]
    single = [weights(merge(tiny_model, one, output_path=tmp_path / "one")[0].model_path) for one in (group[0], group[1])]
    for weight, expected in ((1, single[1]), (0.5, single[0])):
        result, lines, mean = merged(tiny_model, tmp_path / "mean", adapters=names, weight=weight)
        for name, tensor in mean.items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
        assert not [line for line in lines if "warning" in line]
    record = json.loads((result.model_path / "ebr_manifest.json").read_text())
    assert record["weight"] == 0.5
    assert record["adapter"] == ", ".join(f"{one}/{ADAPTER}" for one in group)
    assert "0.5 of what the mean of 3 tunings changes merged" in (result.model_path / "README.md").read_text()


def test_models_tuned_whole_are_taken_too(tiny_model, adapter, tmp_path):
    full = recorded(merge(tiny_model, adapter, output_path=tmp_path / "full")[0].model_path, tiny_model)
    base, tuned = load_file(f"{tiny_model}/{FILE}"), weights(full)
    result, _, part = merged(tiny_model, tmp_path / "part", adapters=[str(full)], weight=0.5)
    for name, tensor in part.items():
        torch.testing.assert_close(tensor, (base[name] + tuned[name]) / 2, atol=1e-6, rtol=0)
    assert SentenceTransformer(str(result.model_path), device="cpu")[1].pooling_mode == "cls"
    # Beside the adapter that it was merged from: the mean of equals is either.
    recorded(adapter, tiny_model)
    assert equal(merged(tiny_model, tmp_path / "both", adapters=[str(full), str(adapter)])[2], tuned)


def test_tunings_of_different_bases_or_ways_to_embed_are_refused(tiny_model, adapter, tmp_path):
    other = another(adapter, tmp_path / "other", tiny_model, 2)
    names = [str(recorded(adapter, tiny_model)), str(other)]
    write_json(other / "ebr_manifest.json", {"base_sha256": "of another"})
    with pytest.raises(ModelError, match=r"adapters .*other: .* is not the base .*; all must be of the same base"):
        merged(tiny_model, tmp_path / "mean", adapters=names)
    (other / "ebr_manifest.json").unlink()
    lines = merged(tiny_model, tmp_path / "mean", adapters=names)[1]
    assert any("does not record what it was tuned from" in line for line in lines)
    recorded(other, tiny_model)
    write_json(other / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32})
    with pytest.raises(ModelError, match=r"embeds otherwise than .*pooling"):
        merged(tiny_model, tmp_path / "new", adapters=names)
    assert not (tmp_path / "new").exists()


def test_weights_without_a_like_in_the_base_have_no_part(tiny_model, adapter, tmp_path):
    from transformers import AutoTokenizer

    full = merge(tiny_model, adapter, output_path=tmp_path / "full")[0].model_path
    model = SentenceTransformer(str(full), device="cpu")
    model[0].model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(full)) + 8)
    model.save_pretrained(str(tmp_path / "grown"))
    with pytest.raises(ModelError, match=r"no like in the base.*word_embeddings"):
        merged(tiny_model, tmp_path / "part", adapters=[str(tmp_path / "grown")], weight=0.5)


@pytest.mark.parametrize("value", [-0.1, 1.5, "half", "nan", True])
def test_a_weight_is_a_number_from_0_to_1_or_auto(value):
    with pytest.raises(ConfigError, match=r"^weight: must be a number from 0 to 1, or auto \(got [^\n]*\)$"):
        MergeConfig(base_model_path="m", lora_adapter_path="a", output_path="o", weight=value)


def test_options_that_nothing_would_read_are_refused(tiny_model, adapter, tmp_path):
    refuse(tiny_model, adapter, "lora_adapter_path, adapters: give one", ConfigError, adapters=["a"])
    refuse(tiny_model, adapter, "weight auto: needs eval_dataset", ConfigError, weight="auto")
    for name in ("eval_dataset", "forgetting_dataset"):
        refuse(tiny_model, adapter, f"{name}: is read for weight auto only", ConfigError, **{name: tmp_path})
    with pytest.raises(ConfigError, match="is given twice"):
        plan_merge(MergeConfig(base_model_path="m", adapters=["a", "./a"], output_path="o"))


# ---------------------------------------------------------------- the weight that is best


def test_of_equals_the_smallest_weight_is_best():
    assert best_weight({0.0: 0.5, 0.1: 0.70004, 0.2: 0.70001, 0.3: 0.6}) == 0.1
    assert best_weight(dict.fromkeys(WEIGHTS, 0.4)) == 0


@pytest.fixture
def asked(tiny_model, adapter, tmp_path):
    """An evaluation set whose grades are the ranking by half of the adapter, so that no other part is as good; and another."""
    half = merged(tiny_model, tmp_path / "half", lora_adapter_path=adapter, weight=0.5)[0].model_path
    model = SentenceTransformer(str(half), device="cpu")
    things, colours = ("cup", "book", "lamp", "shirt"), ("red", "blue", "green", "small", "large")
    documents = [f"{colour} {thing}" for thing in things for colour in colours]
    queries = [f"buy the {thing} a {colour}" for thing in things for colour in colours]
    nearest = (-model.encode_query(queries) @ model.encode_document(documents).T).argsort(1)[:, :10]
    folders = [tmp_path / "shop", tmp_path / "news"]
    for folder, answers in zip(folders, (nearest, [[row] for row in range(len(documents))]), strict=True):
        folder.mkdir()
        for file, texts, kind in (("corpus", documents, "d"), ("queries", queries, "q")):
            lines = [json.dumps({"_id": f"{kind}{row}", "text": text}) for row, text in enumerate(texts)]
            (folder / f"{file}.jsonl").write_text("\n".join(lines))
        grades = [f"q{row}\td{one}\t{10 - rank}" for row, found in enumerate(answers) for rank, one in enumerate(found)]
        (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *grades]) + "\n")
    return folders


def test_the_weight_that_is_best_on_the_evaluation_set_is_merged_with_its_evidence(tiny_model, adapter, asked, tmp_path):
    given = {"lora_adapter_path": adapter, "eval_dataset": asked[0], "forgetting_dataset": asked[1]}
    result, lines, chosen = merged(tiny_model, tmp_path / "auto", weight="auto", **given)
    assert result.weight == 0.5
    assert equal(chosen, weights(tmp_path / "half"))
    record = json.loads((result.model_path / "ebr_manifest.json").read_text())
    tried = record["weight_choice"]["tried"]
    assert (record["weight"], record["weight_choice"]["datasets"]) == (0.5, ["shop", "news"])
    assert [one["weight"] for one in tried] == list(WEIGHTS)
    assert tried[5]["ndcg@10"][0] == 1
    assert all(len(one["ndcg@10"]) == 2 for one in tried)
    assert f"weight 0.3: nDCG@10 {tried[3]['ndcg@10'][0]:.4f} on shop, {tried[3]['ndcg@10'][1]:.4f} on news" in lines
    # The report is of base and chosen weight, and says that the set has chosen.
    report = json.loads((result.model_path / "report.json").read_text())
    assert "chosen on this set" in report["leak_note"]
    for dataset, number in ((report, 0), (report["forgetting"], 1)):
        change = dataset["comparisons"][0]["metrics"]["ndcg@10"]
        assert (change["base"], change["tuned"]) == pytest.approx([tried[step]["ndcg@10"][number] for step in (0, 5)], abs=1e-6)
    # Its thresholds are found by its weights.
    (name,) = [name for name, facts in report["model_facts"].items() if facts.get("model_sha256") == record["model_sha256"]]
    assert report["thresholds"][name]["points"]
    card = (result.model_path / "README.md").read_text()
    assert "| 0.5 | 1.0000 |" in card
    assert "before they were merged" not in card
    assert "0.5, chosen" in result.summary()
    assert "forgetting" in result.summary()


def test_figures_of_the_whole_adapter_are_not_those_of_a_part(tiny_model, adapter, asked, tmp_path, pairs_file):
    from ebr.config import FinetuneConfig
    from ebr.workflow.finetuning import train_sentence_transformer

    options = {"max_steps": 1, "max_seq_length": 16, "report_to": ["none"], "eval_dataset": asked[0]}
    tuned = train_sentence_transformer(
        FinetuneConfig(model_name=tiny_model, data_path=str(pairs_file), output_dir=tmp_path / "saved", **options),
        say=lambda _: None,
    ).model_path
    part = merged(tiny_model, tmp_path / "part", lora_adapter_path=tuned, weight=0.5)[0].model_path
    card = (part / "README.md").read_text()
    assert "It was not evaluated as it was merged." in card
    assert "| nDCG@10 |" not in card
    several = merged(tiny_model, tmp_path / "several", adapters=[str(tuned)], weight=0.5)[0].model_path
    for folder in (part, several):
        assert [source.data_path for source in Provenance.of([str(folder)]).sources] == [str(pairs_file)]


def test_a_dry_run_reads_the_evaluation_set(tiny_model, adapter, asked, tmp_path, capsys):
    given = {"base_model_path": tiny_model, "lora_adapter_path": adapter, "output_path": tmp_path / "o"}
    flags = ["merge", *(f"--{name}={value}" for name, value in given.items())]
    assert main([*flags, "--weight", "auto", "--eval_dataset", str(asked[0]), "--dry_run"]) == 0
    assert "the best of 0, 0.1, … 1 on shop (20 queries)" in capsys.readouterr().out
    assert main([*flags, "--weight", "auto", "--eval_dataset", str(tmp_path / "none"), "--dry_run"]) == 2
