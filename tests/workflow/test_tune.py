"""Tuning by itself, from records to a model with its proof, on a tiny model."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import string
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from ebr import MergeConfig, TuneConfig, merge_adapter, tune_model
from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.data.files.write import read_json, write_json
from ebr.errors import ConfigError, Interrupted, ModelError
from ebr.retrieval.evaluation.leak_check import Provenance
from ebr.workflow.tune import choice as choice_module
from ebr.workflow.tune import climb as climb_module
from ebr.workflow.tune import command as command_module
from ebr.workflow.tune import final as final_module
from ebr.workflow.tune import parts as parts_module
from ebr.workflow.tune import trials as trials_module
from ebr.workflow.tune.budget import Costs
from ebr.workflow.tune.plan import WORK, plan_tune
from ebr.workflow.tune.trials import Figures, Soup, Workshop

WORDS = ("red", "blue", "green", "shoe", "shirt", "lamp", "cup", "book", "small", "large")
STEPS = 300
"""A ladder of three recipes, and in the end three seeds."""


def records_of(n, seed=0):
    """Three letters belong together, whatever words stand around them: something that a tiny model learns in a few steps."""
    rng, codes = random.Random(seed), {}
    while len(codes) < n:
        codes[tuple(sorted(rng.sample(string.ascii_lowercase, 3)))] = None
    return [
        {
            "query": " ".join(["query", *rng.sample(code, 3), rng.choice(WORDS), rng.choice(WORDS)]),
            "pos": [" ".join([rng.choice(WORDS), "passage", *rng.sample(code, 3), rng.choice(WORDS), rng.choice(WORDS)])],
        }
        for code in codes
    ]


def config_for(folder, model, records, **more):
    path = folder / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    fixed = {"model_name": model, "data_path": str(path), "output_dir": folder / "tuned", "steps": STEPS, "max_seq_length": 32}
    return TuneConfig(**fixed | more)


def silent(line):
    pass


@pytest.fixture(scope="module")
def tuned(tiny_model, tmp_path_factory):
    """One tuning for all that only look at it."""
    folder = tmp_path_factory.mktemp("tuned")
    said = []
    config = config_for(folder, tiny_model, records_of(500))
    return tune_model(config, say=said.append), config, said


def tried_once(result):
    """Recipe and steps of every trial that was trained to be measured."""
    return {(one.recipe, one.steps) for one in result.ladder.attempts if "soup" not in one.recipe}


def trained_on_all(result):
    """Recipe and steps of what the model is the mean of."""
    return [(one["recipe"]["name"], one["steps"]) for one in read_json(result.model_path / "ebr_manifest.json")["recipes"]]


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_tuning_ends_with_a_better_model_and_the_proof(tuned, tiny_model):
    result, config, _ = tuned
    output = config.output_dir
    assert result.model_path == output / "model"
    assert sorted(path.name for path in output.iterdir()) == [
        "ebr_manifest.json", "model", "recipe.json", "report.html", "report.json",
    ]  # fmt: skip
    vectors = SentenceTransformer(str(result.model_path), device="cpu").encode(["query a b c red lamp"])
    base = SentenceTransformer(tiny_model, device="cpu").encode(["query a b c red lamp"])
    assert vectors.shape == base.shape and not np.allclose(vectors, base)
    assert result.proof["ebr tune"] > result.proof[tiny_model]
    report = read_json(output / "report.json")
    assert list(report["models"]) == [tiny_model, "ebr tune", "stock recipe"]
    assert report["models"]["ebr tune"]["ndcg@10"] == pytest.approx(result.proof["ebr tune"])
    assert [one["is_chosen"] for one in report["ladder"]["attempts"]].count(True) == 1
    assert report["leaks"]["is_leak"] is False


def test_what_is_said_in_the_end_names_everything(tuned, tiny_model):
    result, _, said = tuned
    text = result.summary()
    for part in ("mined", "★", "over the stock recipe", str(result.model_path), str(result.report), result.command):
        assert part in text
    assert any(line.startswith("measure ") and "BM25" in line for line in said)
    assert sum(line.startswith("trial ") for line in said) == len(tried_once(result))
    page = result.report.read_text(encoding="utf-8")
    assert "How it was chosen" in page and "data:image/svg+xml" in page
    card = (result.model_path / "README.md").read_text(encoding="utf-8")
    assert f"{result.proof['ebr tune']:.4f}" in card


def test_in_the_end_all_records_are_trained_on_with_three_seeds(tuned):
    """As many passes as in the trial, beside the stock recipe on the same records; and everything says so."""
    result, config, said = tuned
    split = plan_tune(config.model_copy(update={"output_dir": config.output_dir.with_name("elsewhere")})).split
    assert (len(split.train), len(split.rest)) == (275, 425)
    chosen = next(one for one in result.ladder.attempts if one.is_chosen)
    steps = int(425 / 275 * chosen.steps)
    names = [chosen.recipe, f"{chosen.recipe}_seed_43", f"{chosen.recipe}_seed_44"]
    assert trained_on_all(result) == [(name, steps) for name in names]
    assert [line.split(" (")[0] for line in said if line.startswith("on all")] == [
        f"on all  {name}, {steps} steps" for name in (names[0], "stock", *names[1:])
    ]
    assert f"trained on all but those of the test part, 425 records: the mean of {names[0]} with {steps} steps" in result.why
    card = (result.model_path / "README.md").read_text(encoding="utf-8")
    assert "- Records: 425\n  - records.jsonl\n" in card and "The mean of 3 trainings" in card
    assert "chosen by nDCG@10 on records held out of the training before the last" in card
    assert "then trained once more, on 425 records, these among them" in result.report.read_text(encoding="utf-8")
    learnt = [one["recipe"]["options"].get("seed", 42) for one in read_json(result.model_path / "ebr_manifest.json")["recipes"]]
    assert learnt == [42, 43, 44]


def test_without_time_for_it_the_trial_is_the_model_and_stock_learns_from_as_much(tiny_model, tmp_path, monkeypatch):
    """What is compared learns from the same records."""
    monkeypatch.setattr(Costs, "grown", lambda self, steps: 10**6)
    said = []
    result = tune_model(config_for(tmp_path, tiny_model, records_of(500)), say=said.append)
    assert "not trained on the records that it was chosen on" in result.why
    assert any(line.startswith("trial   stock, ") for line in said) and "stock recipe" in result.proof
    manifest = read_json(result.model_path / "ebr_manifest.json")
    chosen = next(one for one in result.ladder.attempts if one.is_chosen)
    assert [one["steps"] for one in manifest["recipes"]] == [chosen.steps]
    again = TuneConfig(**read_json(tmp_path / "tuned" / "recipe.json")["config"] | {"output_dir": tmp_path / "again"})
    assert same(weights_of(tune_model(again, say=silent).model_path), weights_of(result.model_path))


def test_the_command_makes_the_same_model_again(tuned, tmp_path):
    result, config, _ = tuned
    record = read_json(config.output_dir / "recipe.json")
    assert record["config"]["data_path"] == config.data_path
    again = tune_model(TuneConfig(**record["config"] | {"output_dir": tmp_path / "again"}), say=silent)
    assert same(weights_of(again.model_path), weights_of(result.model_path))
    card = (again.model_path / "README.md").read_text(encoding="utf-8")
    assert "base_model" in card or "tiny" in card
    by_file = config.model_copy(update={"output_dir": tmp_path / "by-file", "steps": None})
    by_file.recipe = str(config.output_dir / "recipe.json")
    assert same(weights_of(tune_model(by_file, say=silent).model_path), weights_of(result.model_path))


def test_a_soup_is_the_mean_of_its_trials_and_is_made_again(tiny_model, tmp_path, monkeypatch):
    """Every trial that is tasted is taken in here: each is trained on all records, and the model holds the mean of them."""
    kept = []

    def stir_all(shop, chosen, trials, *more):
        others = [one for one in trials if one != chosen][:2]
        members = (chosen, *others)
        found = final_module._taste(shop, members, shop.base(chosen.recipe))
        kept.append(Soup(members, Figures.from_json(found["figures"]), found["took_s"]))
        return kept[0]

    def with_copies(shop, soup, *more):
        kept.append([shutil.copytree(one.model, tmp_path / f"member-{place}") for place, one in enumerate(soup.members)])
        return again(shop, soup, *more)

    again = command_module.make_final_again
    monkeypatch.setattr(command_module, "stir", stir_all)
    monkeypatch.setattr(command_module, "make_final_again", with_copies)
    monkeypatch.setattr(final_module._Dial, "_ndcg", lambda self, dial, weight: np.array([float(weight == 0.8)]))
    result = tune_model(config_for(tmp_path, tiny_model, records_of(500), steps=230), say=silent)
    (soup, folders), made = kept, weights_of(result.model_path)
    chosen = next(one for one in result.ladder.attempts if one.is_chosen)
    assert (chosen.recipe, chosen.ndcg) == ("soup of 3", pytest.approx(soup.mean))
    base = load_file(f"{tiny_model}/model.safetensors")
    whole = [weights_of(_merged(tiny_model, folder, tmp_path / f"whole-{folder.name}")) for folder in folders]
    assert len(whole) == 3
    for name, weight in base.items():
        mean = np.mean([one[name].astype(np.float64) for one in whole], axis=0)
        np.testing.assert_allclose(made[name], weight + 0.8 * (mean - weight), atol=2e-6)
    assert trained_on_all(result) == [(one.recipe.name, int(425 / 275 * one.steps)) for one in soup.members]
    card = (result.model_path / "README.md").read_text(encoding="utf-8")
    named = ", ".join(f"`{name}` with {steps} steps" for name, steps in trained_on_all(result))
    assert "0.8 of what the mean of 3 tunings changes" in card and f"The mean of 3 trainings: {named}" in card
    assert "before they were merged" not in card and "weights that were merged, 3" in card
    assert "| 0.8 | 1.0000 |" in card, "how the weight was chosen"
    again = TuneConfig(**read_json(tmp_path / "tuned" / "recipe.json")["config"] | {"output_dir": tmp_path / "again"})
    made_again = tune_model(again, say=silent)
    assert same(weights_of(made_again.model_path), made) and "the mean of" in made_again.why


def _merged(base, adapter, output):
    config = MergeConfig(base_model_path=base, lora_adapter_path=adapter, output_path=output)
    return merge_adapter(config, say=silent).model_path


@pytest.mark.parametrize("what", ["records", "options", "base", "test part"])
def test_a_recipe_that_would_make_another_model_is_refused(what, tuned, tiny_model, tmp_path, evaluation_folder):
    config = TuneConfig(**read_json(tuned[1].output_dir / "recipe.json")["config"] | {"output_dir": tmp_path / "again"})
    if what == "records":
        config.data_path = config_for(tmp_path, tiny_model, records_of(500, seed=1)).data_path
    elif what == "options":
        config.seed, config.max_seq_length = 7, 16
    elif what == "base":
        base = shutil.copytree(tiny_model, tmp_path / "base")
        weights = load_file(base / "model.safetensors")
        save_file({name: weight * 1.01 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
        config.model_name = str(base)
    else:
        config.eval_dataset = evaluation_folder
    with pytest.raises(ConfigError, match=r"recipe: was found with other .* and would make another model"):
        plan_tune(config)


def test_the_model_says_what_it_was_made_of(tuned):
    """Not the folders that it was made in, which are gone: base and records, so that a later evaluation can look for leaks."""
    result, config, _ = tuned
    manifest = read_json(result.model_path / "ebr_manifest.json")
    assert (manifest["base_model"], manifest["config"]["data_path"]) == (config.model_name, config.data_path)
    assert f"/{WORK}/" not in json.dumps(manifest).replace(str(config.output_dir), "")
    known = Provenance.of([str(result.model_path)])
    assert [source.data_path for source in known.sources] == [config.data_path] and not known.unknown


def test_a_finished_tuning_is_not_written_over(tuned):
    with pytest.raises(ConfigError, match="holds a finished tuning"):
        tune_model(tuned[1], say=silent)


class Killed(TrainerCallback):
    """Ctrl-C at the end of a step of the longest trial."""

    on_all = False

    def on_step_end(self, args, state, control, **more):
        if ("on_all" in args.output_dir) == self.on_all and args.max_steps > 30 and state.global_step == 20:
            os.kill(os.getpid(), signal.SIGINT)


class KilledInTheEnd(Killed):
    """The same of the last training."""

    on_all = True


def kill(where, monkeypatch):
    """Have the next tuning stopped: in the middle of a training, or at a call of something."""
    if where.startswith("training"):
        killed = Killed if where == "training" else KilledInTheEnd
        monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, killed])
        return
    owner, most = final_module if where == "_taste" else Workshop, {"evaluate": 3, "_taste": 2}.get(where, 1)
    real, calls = getattr(owner, where), []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == most:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(owner, where, stopped)


@pytest.mark.parametrize("where", ["evaluate", "_mined", "training", "training on all", "_taste"])
def test_killed_and_gone_on_is_as_never_killed(where, tuned, tiny_model, tmp_path, monkeypatch):
    """Wherever it is stopped: the same choice, the same bits, and no trial twice."""
    config = config_for(tmp_path, tiny_model, records_of(500))
    with monkeypatch.context() as patch:
        kill(where, patch)
        with pytest.raises(Interrupted, match="the same command goes on"):
            tune_model(config, say=silent)
    done = len(list((config.output_dir / "work").glob("**/trial.json")))
    trained, train = [], Workshop.trained
    monkeypatch.setattr(Workshop, "trained", lambda self, *what: trained.append(what) or train(self, *what))
    result = tune_model(config, say=silent)
    assert len(trained) + done == len(tried_once(result)) + len(trained_on_all(result)) + 1  # and the stock recipe
    assert [(one.recipe, one.steps, one.ndcg) for one in result.ladder.attempts] == [
        (one.recipe, one.steps, one.ndcg) for one in tuned[0].ladder.attempts
    ]
    assert same(weights_of(result.model_path), weights_of(tuned[0].model_path))


def interrupt(config, monkeypatch, owner, name, say=silent):
    """Ctrl-C at the first call of owner's function of this name."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Interrupted):
            tune_model(config, say=say)


def test_unfinished_work_may_be_moved(tiny_model, tmp_path, monkeypatch):
    config = config_for(tmp_path, tiny_model, records_of(300), steps=40)
    interrupt(config, monkeypatch, command_module, "prove")
    config.output_dir = config.output_dir.rename(tmp_path / "moved")
    said = []
    tune_model(config, say=said.append)
    assert any("kept from before" in line for line in said)


def test_a_home_folder_is_found(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    plan = plan_tune(config_for(tmp_path, tiny_model, records_of(300), output_dir="~/mine"))
    assert plan.config.output_dir == tmp_path / "mine"


def test_an_unfinished_tuning_is_not_taken_for_another(tiny_model, tmp_path, monkeypatch):
    config = config_for(tmp_path, tiny_model, records_of(300))
    interrupt(config, monkeypatch, Workshop, "trained")
    with pytest.raises(ConfigError, match=r"unfinished tuning that differs in train_batch_size, seed"):
        tune_model(config.model_copy(update={"seed": 7, "train_batch_size": 16}), say=silent)
    config_for(tmp_path, tiny_model, records_of(300, seed=1))
    with pytest.raises(ConfigError, match="differs in data_path"):
        tune_model(config, say=silent)


def test_records_that_cannot_help_leave_the_base(tiny_model, tmp_path):
    """Positives that belong to other queries: nothing is written but the report that says so."""
    records = records_of(400)
    rng = random.Random(5)
    shuffled = [record["pos"] for record in records]
    rng.shuffle(shuffled)
    records = [record | {"pos": pos} for record, pos in zip(records, shuffled, strict=True)]
    result = tune_model(config_for(tmp_path, tiny_model, records, steps=40), say=silent)
    assert result.model_path is None and result.command == ""
    assert "nothing is better than the base beyond chance" in result.why
    assert "the base: nothing was better" in result.summary()
    assert {path.name for path in (tmp_path / "tuned").iterdir()} == {"ebr_manifest.json", "report.html", "report.json"}
    assert read_json(tmp_path / "tuned" / "ebr_manifest.json")["model"] is None


def test_an_open_choice_is_settled_on_further_records(tiny_model, tmp_path, monkeypatch):
    """What one part leaves open is told by another; a tuning that is killed there goes on with what it had."""
    n_first = []

    def only_elsewhere(gain):
        """Sure on another number of queries than those that were chosen on."""
        n_first[:] = n_first or [gain.n_queries]
        return gain.n_queries != n_first[0]

    monkeypatch.setattr(choice_module.Gain, "is_sure", property(only_elsewhere))
    monkeypatch.setattr(choice_module.Gain, "is_open", property(lambda gain: not gain.is_sure))
    # Of another size than the first, so that the rule above knows it.
    monkeypatch.setattr(parts_module.Split, "with_others_to_choose_on", fewer(parts_module.Split.with_others_to_choose_on))
    config, said = config_for(tmp_path, tiny_model, records_of(400), steps=1200), []
    interrupt(config, monkeypatch, Workshop, "figures_of_base", said.append)
    assert any(line.startswith("part 2") and "(kept" not in line for line in said)
    found = tune_model(config, say=said.append)
    assert sum(line.startswith("part 2") and "(kept" not in line for line in said) == 1, "a trial is never run twice"
    assert not any(line.startswith("part 3") for line in said), "settled by one"
    assert f"on {found.ladder.gain.n} queries that had no say" in found.why and found.ladder.gain.n != found.ladder.n_queries
    assert found.ladder.n_further == 1 and found.model_path is not None


def fewer(method):
    """The same, less its last record to choose on."""

    def without_one(split, seed):
        found = method(split, seed)
        return found and replace(found, choose=found.choose[:-1])

    return without_one


def test_without_budget_an_open_choice_leaves_the_base(tiny_model, tmp_path, monkeypatch):
    """As many steps as the ladder takes, and none for another look: nothing of it is trained, and that is said."""
    monkeypatch.setattr(choice_module.Gain, "is_sure", property(lambda gain: False))
    monkeypatch.setattr(choice_module.Gain, "is_open", property(lambda gain: True))
    said = []
    found = tune_model(config_for(tmp_path, tiny_model, records_of(400), steps=34), say=said.append)
    assert any("is open, and nothing is left to judge it on further records" in line for line in said)
    assert found.model_path is None and not any(line.startswith("part 2") for line in said)


def test_unfinished_work_of_another_version_is_refused(tiny_model, tmp_path, monkeypatch):
    config = config_for(tmp_path, tiny_model, records_of(300))
    interrupt(config, monkeypatch, command_module, "prove")
    path = tmp_path / "tuned" / "work" / "state.json"
    kept = read_json(path)
    write_json(path, {name: value for name, value in kept.items() if name != "format"})
    with pytest.raises(ConfigError, match="unfinished tuning of another version of EBR; give another folder"):
        tune_model(config, say=silent)


def test_a_choice_that_the_proof_speaks_against_is_not_kept(tiny_model, tmp_path, monkeypatch):
    """What is best on the part to choose on can be chance: with less than the base on the test part, the base is the answer."""
    from ebr.workflow.tune import command

    real = command.results_of
    monkeypatch.setattr(command, "results_of", lambda report: real(report) | {"ebr tune": 0.0})
    result = tune_model(config_for(tmp_path, tiny_model, records_of(500)), say=silent)
    assert result.model_path is None and "but on the test part it is no better than the base" in result.why
    assert not (tmp_path / "tuned" / "model").exists() and not (tmp_path / "tuned" / "recipe.json").exists()


def test_minutes_are_kept(tiny_model, tmp_path, monkeypatch):
    """The ladder is cut to what was measured, and the steps that it came to are written down. Too few are refused, not kept.

    Nor is what was reckoned with them: half of the documents are looked at, as the minutes allow in the end.
    """
    monkeypatch.setattr(climb_module, "share_to_look_at", lambda _, n, seconds: 0.1 if seconds < 1 else 0.5)
    config = config_for(tmp_path, tiny_model, records_of(300), steps=None, minutes=0.001)
    with pytest.raises(ConfigError, match=r"minutes 0.001: leave a recipe less than 8 training steps"):
        tune_model(config, say=silent)
    config.minutes = 5.0  # as it was told: the same command with more goes on
    result = tune_model(config, say=silent)
    manifest = read_json(tmp_path / "tuned" / "ebr_manifest.json")
    assert manifest["found"]["share"] == 0.5
    (_, steps), *_ = manifest["found"]["rungs"]
    assert result.ladder.attempts[0].steps == steps >= 8 and manifest["found"]["total_steps"] > 3 * steps
    assert (result.ladder.n_queries, result.ladder.n_documents) == (100, 128)
    assert {one.recipe for one in result.ladder.attempts} >= {"plain", "mined"}
    assert result.seconds < 300


def test_every_weight_a_second_set_and_chinese(tiny_model, tmp_path, evaluation_folder):
    more = {"finetune_type": "full", "forgetting_dataset": evaluation_folder, "language": "zh", "steps": 40}
    result = tune_model(config_for(tmp_path, tiny_model, records_of(400), **more), say=silent)
    page = result.report.read_text(encoding="utf-8")
    assert "选择过程" in page
    assert read_json(tmp_path / "tuned" / "report.json")["forgetting"]["dataset"]["n_queries"] == 10
    if result.model_path:
        assert result.forgetting.n_queries == 10
        card = (result.model_path / "README.md").read_text(encoding="utf-8")
        asked = read_json(result.model_path / "ebr_manifest.json")["weight_choice"]["second_chooses"]
        assert (f"the one that keeps most on {evaluation_folder.name} was taken" in card) == asked


def test_a_second_set_may_lack_an_answer(tiny_model, tmp_path, evaluation_folder):
    """Its likelihood could not be told, and is not asked: a query that cannot be answered finds nothing."""
    whole, lacks = evaluation_folder, shutil.copytree(evaluation_folder, tmp_path / "lacks")
    lines = (lacks / "qrels.tsv").read_text(encoding="utf-8").splitlines()
    query = lines[1].split("\t")[0]
    kept = [line for line in lines if not line.startswith(f"{query}\t")]
    (lacks / "qrels.tsv").write_text("\n".join([*kept, f"{query}\tnowhere\t1"]) + "\n", encoding="utf-8")
    dial = SimpleNamespace(encoder=SentenceTransformer(tiny_model), turn=lambda weight: None)
    at = [final_module._Dial._kept_at(dial, 1.0, read_evaluation_set(folder)) for folder in (whole, lacks)]
    assert 0 < at[1] < at[0]


def test_a_script_is_taught_and_the_model_is_whole(tiny_model, tmp_path):
    """The base cannot spell Cyrillic: what is chosen can, and needs no other folder."""
    to = str.maketrans(string.ascii_lowercase, "абвгдежзийклмнопрстуфхцчшщ")
    records = [
        {"query": record["query"].translate(to), "pos": [text.translate(to) for text in record["pos"]]}
        for record in records_of(600)
    ]
    result = tune_model(config_for(tmp_path, tiny_model, records, steps=400), say=print)
    assert result.model_path is not None and "extended" in result.why
    model = SentenceTransformer(str(result.model_path), device="cpu")
    assert model.tokenizer.unk_token_id not in model.tokenizer("а б в")["input_ids"]
    assert {one.recipe for one in result.ladder.attempts} >= {"extended", "extended_high"}


def test_a_recipe_that_the_records_cannot_feed_is_left_out(tiny_model, tmp_path):
    """Texts of two words make no pairs; the others are tried all the same."""
    records = [
        {"query": f"buy {a} {b}", "pos": [f"the {b} {a}"]} for a in string.ascii_lowercase for b in string.ascii_lowercase
    ]
    corpus = tmp_path / "more.txt"
    corpus.write_text("\n".join(f"the {a} {b}" for a in string.digits for b in string.ascii_lowercase), encoding="utf-8")
    said = []
    result = tune_model(config_for(tmp_path, tiny_model, records, corpus=str(corpus), steps=400), say=said.append)
    assert any(line.startswith("trial   pairs is left out: ") and "no text makes a pair" in line for line in said)
    assert len(result.ladder.attempts) >= 6


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"minutes": 5}, "minutes, steps: both say when to end"),
        ({"data_path": " "}, "data_path: is empty"),
        ({"model_name": "no-such-model"}, "no-such-model"),
        ({"corpus": ["nowhere.jsonl"]}, "nowhere.jsonl"),
    ],
)
def test_wrong_options_are_told(more, what, tiny_model, tmp_path):
    with pytest.raises(Exception, match=what) as caught:
        plan_tune(config_for(tmp_path, tiny_model, records_of(300), **more))
    assert isinstance(caught.value, ValueError)
    assert not (tmp_path / "tuned").exists()


def test_an_evaluation_folder_and_a_test_split_are_one_too_many(tiny_model, tmp_path, evaluation_folder):
    config = config_for(tmp_path, tiny_model, records_of(300), eval_dataset=evaluation_folder, test_split=0.2)
    with pytest.raises(ConfigError, match="test_split: has no meaning with an eval_dataset"):
        plan_tune(config)


def test_an_adapter_is_no_base(tiny_model, tmp_path):
    config = config_for(tmp_path, tiny_model, records_of(300))
    shop_folder = tmp_path / "elsewhere"
    from ebr import FinetuneConfig, train_sentence_transformer

    tuning = FinetuneConfig(
        model_name=tiny_model, data_path=config.data_path, output_dir=shop_folder, max_steps=1, report_to=["none"], save_steps=0
    )
    adapter = train_sentence_transformer(tuning, say=silent).model_path
    config.model_name = str(adapter)
    with pytest.raises(ModelError, match="is an adapter; merge it first"):
        plan_tune(config)


def test_a_folder_of_something_else_is_left_alone(tiny_model, tmp_path):
    config = config_for(tmp_path, tiny_model, records_of(300))
    config.output_dir.mkdir()
    (config.output_dir / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds something that is no tuning of ours"):
        tune_model(config, say=silent)
    assert [path.name for path in config.output_dir.iterdir()] == ["thesis.txt"]


def test_options_reach_every_trial(tiny_model, tmp_path, monkeypatch):
    """The prompts, lengths, batch, pooling and seed of a tuning are those of its trainings, its mining, its measuring."""
    config = config_for(
        tmp_path, tiny_model, records_of(300), steps=40, query_prompt="query ", passage_prompt="passage ", max_seq_length=16,
        train_batch_size=8, pooling="cls", seed=3,
    )  # fmt: skip
    seen, finetuning, mining = [], Workshop.finetuning, trials_module.MiningConfig
    monkeypatch.setattr(Workshop, "finetuning", lambda self, *what: seen.append(made := finetuning(self, *what)) or made)
    monkeypatch.setattr(trials_module, "MiningConfig", lambda **given: seen.append(made := mining(**given)) or made)
    result = tune_model(config, say=silent)
    for name in ("query_prompt", "passage_prompt", "max_seq_length", "train_batch_size", "pooling", "seed"):
        assert {one[name] for one in seen if name in one} == {config[name]}, name
    facts = read_json(config.output_dir / "report.json")["model_facts"][tiny_model]
    assert (facts["pooling"], facts["max_seq_length"]) == ("cls", 16)
    assert result.ladder is not None
