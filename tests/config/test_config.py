"""Every option is defined once: one field is attribute, key, check, recorded JSON and help in two languages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.config import FinetuneConfig, InferenceConfig, MergeConfig, SampleConfig, TrainConfig, VisualizationConfig
from ebr.errors import ConfigError
from ebr.notebook import notebook_configs

QUICK = settings(deadline=None, max_examples=30, database=None)

ALL = [FinetuneConfig, TrainConfig, MergeConfig, InferenceConfig, SampleConfig, VisualizationConfig]

TRAIN_NEEDS = {"model_name_or_path": "m", "train_dataset": "t.jsonl", "output_dir": "o", "batch_size": 4}
MERGE_NEEDS = {"base_model_path": "m", "lora_adapter_path": "a", "output_path": "o"}


def made(config, **values):
    """The config with what it cannot do without, and the values."""
    return config.from_dict({TrainConfig: TRAIN_NEEDS, MergeConfig: MERGE_NEEDS}.get(config, {}), values)


FINETUNE_DEFAULTS = {
    "model_name": "all-MiniLM-L6-v2",
    "data_path": "./train_text",
    "eval_dataset": None,
    "forgetting_dataset": None,
    "output_dir": Path("./saved_model"),
    "finetune_type": "lora",
    "quantization_bits": 4,
    "pooling": None,
    "attn_implementation": None,
    "num_epochs": 1,
    "max_steps": 0,
    "train_batch_size": 6,
    "eval_batch_size": 6,
    "learning_rate": 2e-4,
    "max_seq_length": 256,
    "query_max_len": None,
    "passage_max_len": None,
    "neg_nums": 2,
    "gather_negatives": False,
    "temperature": 0.05,
    "lora_r": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "weight_decay": 0.01,
    "l1_regularization": 0.0,
    "max_grad_norm": 1.0,
    "label_smoothing": 0.0,
    "validation_split": 0.1,
    "eval_steps": 100,
    "early_stopping_patience": 0,
    "early_stopping_threshold": 0.0,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "seed": 42,
    "save_steps": 100,
    "save_on_epoch_end": 0,
    "report_to": ["tensorboard"],
    "noise_enabled": False,
    "noise_type": "random_delete",
    "noise_prob": 0.1,
    "noise_apply_to_fields": ["anchor", "positive"],
}
TRAIN_DEFAULTS = {
    "finetune_type": "qlora",
    "quantization_bits": 4,
    "lr": 1e-4,
    "epochs": 2,
    "neg_nums": 2,
    "temperature": 0.02,
    "query_max_len": 256,
    "passage_max_len": 1024,
    "lora_r": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "save_on_epoch_end": 1,
    "gradient_accumulation_steps": 4,
    "warmup_proportion": 0.05,
    "num_workers": 0,
    "seed": 42,
    "log_with": ["tensorboard"],
    "validation_split": 0.0,
    "save_steps": 0,
}
INFERENCE_DEFAULTS = {
    "input_dir": Path("./infer_data"),
    "delimiter": "\x01",
    "description_column": "description",
    "output_path": Path("./faiss/embeds_2.txt"),
}
VISUALIZATION_DEFAULTS = {"label_column": "label", "output_path": Path("./embedding_scatter.png")}

DEFAULTS = [
    (config, name, value)
    for config, table in [
        (FinetuneConfig, FINETUNE_DEFAULTS),
        (TrainConfig, TRAIN_DEFAULTS),
        (InferenceConfig, INFERENCE_DEFAULTS),
        (VisualizationConfig, VISUALIZATION_DEFAULTS),
    ]
    for name, value in table.items()
]


@pytest.mark.parametrize(("config", "name", "value"), DEFAULTS)
def test_default_is_the_one_that_was_asked_for(config, name, value):
    got = made(config)[name]
    assert got == value
    assert type(got) is type(value) or isinstance(value, Path)


def test_item_and_attribute_are_the_same_field():
    config = FinetuneConfig()
    config["num_epochs"] = "3"
    assert (config.num_epochs, config["num_epochs"]) == (3, 3)
    config.num_epochs = 4
    assert (config.num_epochs, config["num_epochs"]) == (4, 4)


def test_config_unpacks_like_the_dict_it_replaces():
    config = InferenceConfig(batch_size=7)
    assert {**config}["batch_size"] == 7
    assert set({**config}) == set(InferenceConfig.model_fields)
    assert "batch_size" in config
    assert "batchsize" not in config


@pytest.mark.parametrize("write", [lambda c, v: c.__setitem__("lora_r", v), lambda c, v: setattr(c, "lora_r", v)])
def test_wrong_value_is_refused_by_both_ways_and_changes_nothing(write):
    config = FinetuneConfig()
    with pytest.raises(ConfigError, match=r"^lora_r: must be greater than or equal to 1 \(got 0\)$"):
        write(config, 0)
    assert config.lora_r == 8


def test_unknown_key_names_the_near_miss_wherever_it_is_used():
    config = FinetuneConfig()
    with pytest.raises(ConfigError, match=r"^num_epoch: unknown option; did you mean num_epochs\?$"):
        FinetuneConfig(num_epoch=1)
    with pytest.raises(ConfigError, match=r"^num_epoch: unknown option; did you mean num_epochs\?$"):
        config["num_epoch"] = 1
    with pytest.raises(ConfigError, match="did you mean num_epochs"):
        config.num_epoch = 1
    with pytest.raises(KeyError, match="did you mean num_epochs"):
        config["num_epoch"]


def test_key_that_resembles_nothing_suggests_nothing():
    with pytest.raises(ConfigError, match=r"^zzz: unknown option$"):
        FinetuneConfig(zzz=1)


def test_every_wrong_option_stands_in_one_error_each_on_its_line():
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig(num_epochs=0, temperature="warm", finetune_type="dora", batchsize=6, seed=1)
    lines = str(caught.value).split("\n")
    assert sorted(line.split(":")[0] for line in lines) == ["batchsize", "finetune_type", "num_epochs", "temperature"]
    assert "finetune_type: must be 'lora', 'qlora' or 'full' (got 'dora')" in lines


LOWER_BOUNDS = {
    "num_epochs": (1, 0), "max_steps": (0, -1), "train_batch_size": (1, 0), "eval_batch_size": (2, 1),
    "learning_rate": (1e-9, 0), "new_token_learning_rate": (0, -1),
    "max_seq_length": (4, 3), "query_max_len": (4, 3), "passage_max_len": (4, 3), "neg_nums": (0, -1),
    "temperature": (1e-9, 0), "lora_r": (1, 0), "lora_alpha": (1, 0),
    "lora_dropout": (0, -0.1), "model_dropout": (0, -0.1), "weight_decay": (0, -0.1),
    "l1_regularization": (0, -0.1), "max_grad_norm": (0, -1),
    "label_smoothing": (0, -0.1), "validation_split": (0, -0.1), "eval_steps": (1, 0), "early_stopping_patience": (0, -1),
    "early_stopping_threshold": (0, -0.1), "warmup_ratio": (0, -0.1), "gradient_accumulation_steps": (1, 0),
    "dataloader_num_workers": (0, -1), "seed": (0, -1), "save_steps": (0, -1), "save_on_epoch_end": (0, -1),
    "save_total_limit": (1, 0),
    "noise_prob": (0, -0.1), "teacher_temperature": (1e-9, 0), "contrastive_weight": (0, -0.1),
    "micro_batch_tokens": (1, 0), "activation_memory_gb": (0, -0.1),
}  # fmt: skip
UPPER_BOUNDS = {
    "lora_dropout": (0.99, 1), "model_dropout": (0.99, 1),
    "label_smoothing": (0.99, 1), "validation_split": (0.99, 1), "warmup_ratio": (0.99, 1),
    "noise_prob": (1, 1.01),
}  # fmt: skip


@pytest.mark.parametrize("config", [FinetuneConfig, TrainConfig])
@pytest.mark.parametrize(("name", "inside", "outside"), [(n, *v) for t in (LOWER_BOUNDS, UPPER_BOUNDS) for n, v in t.items()])
def test_range_holds_its_edge_and_refuses_what_lies_beyond(config, name, inside, outside):
    assert made(config, **{name: inside})[name] == inside
    with pytest.raises(ConfigError, match=rf"^{config.spelling(name)}: must be (greater|less) than .* \(got {outside}\)$"):
        made(config, **{name: outside})


def test_every_number_of_fine_tuning_has_a_range():
    numbers = {
        name
        for name, field in FinetuneConfig.model_fields.items()
        if field.annotation in (int, float, int | None, float | None)
    }
    assert numbers == set(LOWER_BOUNDS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_number_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="learning_rate: must be a finite number"):
        FinetuneConfig(learning_rate=value)


def test_empty_delimiter_is_refused():
    with pytest.raises(ConfigError, match="delimiter"):
        InferenceConfig(delimiter="")


def test_forgetting_needs_a_report_to_stand_in():
    with pytest.raises(ConfigError, match=r"forgetting_dataset: .*give one, or this as eval_dataset"):
        FinetuneConfig(forgetting_dataset="datasets/x").check()
    FinetuneConfig(forgetting_dataset="datasets/x", eval_dataset="datasets/y").check()


def test_patience_needs_something_to_judge_by():
    with pytest.raises(ConfigError, match=r"early_stopping_patience: .*validation_split above 0 or give an eval_dataset"):
        FinetuneConfig(early_stopping_patience=2, validation_split=0).check()
    FinetuneConfig(early_stopping_patience=2, validation_split=0.1).check()
    FinetuneConfig(early_stopping_patience=2, validation_split=0, eval_dataset="datasets/x").check()
    FinetuneConfig(early_stopping_patience=0, validation_split=0).check()


def test_fp16_and_bf16_exclude_each_other():
    with pytest.raises(ConfigError, match="fp16, bf16: choose one"):
        FinetuneConfig(fp16=True, bf16=True).check()
    FinetuneConfig(fp16=True).check()
    FinetuneConfig(bf16=True).check()


@pytest.mark.parametrize("config", [FinetuneConfig, TrainConfig])
def test_one_length_for_all_texts_needs_a_text_to_apply_to(config):
    both = {"query_max_len": 32, "passage_max_len": 64}
    with pytest.raises(ConfigError, match=r"^max_seq_length: query_max_len and passage_max_len leave no text to it"):
        made(config, max_seq_length=128, **both).check()
    made(config, **both).check()
    for name in both:
        made(config, max_seq_length=128, **{**both, name: None}).check()


@pytest.mark.parametrize("config", [FinetuneConfig, TrainConfig])
@pytest.mark.parametrize(("value", "wanted"), [("4", 4), ("8", 8), (" 8 ", 8), (8, 8)])
def test_bits_are_a_number_however_they_are_written(config, value, wanted):
    assert made(config, quantization_bits=value).quantization_bits == wanted


@pytest.mark.parametrize(("value", "shown"), [(5, "5"), ("5", "5"), ("eight", "'eight'"), (None, "None")])
def test_bits_other_than_4_and_8_are_refused(value, shown):
    with pytest.raises(ConfigError, match=rf"^quantization_bits: must be 4 or 8 \(got {shown}\)$"):
        made(TrainConfig, quantization_bits=value)


def test_wrong_noise_field_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"^noise_apply_to_fields: query, title unknown; use anchor, positive, negative$"):
        FinetuneConfig(noise_apply_to_fields="title anchor query").check()
    FinetuneConfig(noise_apply_to_fields="anchor positive negative").check()


@pytest.mark.parametrize("value", ["anchor negative", "anchor,negative", "anchor, negative", ["anchor", "negative"]])
def test_words_are_a_list_however_they_are_written(value):
    assert FinetuneConfig(noise_apply_to_fields=value).noise_apply_to_fields == ["anchor", "negative"]


def test_default_list_belongs_to_one_config_alone():
    FinetuneConfig().report_to.append("wandb")
    assert FinetuneConfig().report_to == ["tensorboard"]


RESUME = {
    "true": True,
    "True": True,
    "false": False,
    " FALSE ": False,
    "": None,
    "runs/checkpoint-4": Path("runs/checkpoint-4"),
}


@pytest.mark.parametrize(("value", "wanted"), [*RESUME.items(), (True, True), (False, False), (None, None)])
def test_resume_is_a_switch_or_a_folder(value, wanted):
    assert FinetuneConfig(resume_from_checkpoint=value).resume_from_checkpoint == wanted


@pytest.mark.parametrize("config", ALL)
def test_defaults_survive_json(config):
    assert config.from_dict(json.loads(json.dumps(made(config).to_json()))) == made(config)


@QUICK
@given(
    resume=st.sampled_from([True, False, None, Path("a/checkpoint-7")]),
    modules=st.none() | st.lists(st.sampled_from(["q_proj", "v_proj"]), min_size=1),
    rate=st.floats(1e-12, 1e3),
    prompt=st.none() | st.text(),
)
def test_changed_options_survive_json(resume, modules, rate, prompt):
    config = FinetuneConfig(resume_from_checkpoint=resume, target_modules=modules, learning_rate=rate, prompt=prompt)
    again = FinetuneConfig.from_dict(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert type(again.resume_from_checkpoint) is type(config.resume_from_checkpoint)


def test_overrides_win_as_a_dict_and_as_json():
    assert FinetuneConfig.from_dict({"num_epochs": 2, "seed": 5}, {"num_epochs": 3}).num_epochs == 3
    config = FinetuneConfig.from_dict({"num_epochs": 2, "seed": 5}, '{"num_epochs": 4}')
    assert (config.num_epochs, config.seed) == (4, 5)


# ---------------------------------------------------------------- the names that train.py's users know

SPELLINGS = {
    "model_name": "model_name_or_path",
    "data_path": "train_dataset",
    "train_batch_size": "batch_size",
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "warmup_ratio": "warmup_proportion",
    "dataloader_num_workers": "num_workers",
    "report_to": "log_with",
}
VALUES = {
    "model_name": "other", "data_path": "other.jsonl", "train_batch_size": 7, "learning_rate": 3e-6, "num_epochs": 9,
    "warmup_ratio": 0.5, "dataloader_num_workers": 3, "report_to": ["wandb", "mlflow"],
}  # fmt: skip


def test_train_py_spells_eight_fields_its_own_way_and_every_other_by_its_name():
    got = {name: TrainConfig.spelling(name) for name in TrainConfig.model_fields}
    assert got == {name: SPELLINGS.get(name, name) for name in FinetuneConfig.model_fields}


@pytest.mark.parametrize("name", SPELLINGS)
def test_both_spellings_write_and_read_one_field(name):
    spelling, value = SPELLINGS[name], VALUES[name]
    needed = {key: needed for key, needed in TRAIN_NEEDS.items() if key != spelling}
    for key in (name, spelling):
        item, attribute = made(TrainConfig), made(TrainConfig)
        item[key] = value
        setattr(attribute, key, value)
        configs = [
            TrainConfig(**needed, **{key: value}),
            TrainConfig.from_dict({**needed, key: value}),
            TrainConfig.from_dict(needed, json.dumps({key: value})),
            item,
            attribute,
        ]
        for config in configs:
            assert config == configs[0]
            assert [config[name], config[spelling], getattr(config, name), getattr(config, spelling)] == [value] * 4
            assert name in config
            assert spelling in config


@pytest.mark.parametrize(("below", "above"), [("lr", "learning_rate"), ("learning_rate", "lr")])
def test_override_wins_whichever_spelling_it_meets(below, above):
    assert TrainConfig.from_dict({**TRAIN_NEEDS, below: 1e-3}, {above: 2e-3}).lr == 2e-3


def test_train_config_is_recorded_by_field_names_and_read_back_the_same():
    config = made(TrainConfig, lr=3e-6, log_with="wandb,mlflow", quantization_bits=8, query_max_len=None)
    record = json.loads(json.dumps(config.to_json()))
    assert list(record) == list(FinetuneConfig.model_fields)
    assert (record["learning_rate"], record["report_to"], record["query_max_len"]) == (3e-6, ["wandb", "mlflow"], None)
    assert TrainConfig.from_dict(record) == config


def test_train_config_is_a_finetune_config_with_its_fields_in_its_order():
    assert isinstance(made(TrainConfig), FinetuneConfig)
    assert list(TrainConfig.model_fields) == list(FinetuneConfig.model_fields)
    assert list(made(TrainConfig).keys()) == list(FinetuneConfig.model_fields)


@pytest.mark.parametrize("name", FinetuneConfig.model_fields)
def test_type_and_limits_are_those_of_the_finetune_field_so_that_a_later_one_arrives_too(name):
    ours, theirs = FinetuneConfig.model_fields[name], TrainConfig.model_fields[name]
    assert (theirs.annotation, theirs.metadata) == (ours.annotation, ours.metadata)


def test_defaults_that_train_py_does_not_name_are_those_of_fine_tuning():
    named = {TrainConfig.field_name(name) for name in (*TRAIN_NEEDS, *TRAIN_DEFAULTS)}
    config, other = made(TrainConfig), FinetuneConfig()
    assert {name for name in config.keys() if config[name] != other[name]} <= named


@pytest.mark.parametrize("config", [TrainConfig, MergeConfig])
def test_every_option_that_must_be_given_is_named_at_once_and_no_other(config):
    one_of_two = {"lora_adapter_path": MERGE_NEEDS["lora_adapter_path"]}  # or adapters: asked for when it is merged
    needed = TRAIN_NEEDS if config is TrainConfig else {k: v for k, v in MERGE_NEEDS.items() if k not in one_of_two}
    with pytest.raises(ConfigError) as caught:
        config()
    assert str(caught.value).split("\n") == [f"{name}: is required" for name in needed]
    config(**needed)


@pytest.mark.parametrize("key", ["lr", "learning_rate"])
def test_error_names_the_option_as_train_py_spells_it(key):
    config = made(TrainConfig)
    message = r"^lr: must be greater than 0 \(got 0\)$"
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**TRAIN_NEEDS, **{key: 0})
    with pytest.raises(ConfigError, match=message):
        config[key] = 0
    with pytest.raises(ConfigError, match=message):
        setattr(config, key, 0)
    assert config.lr == 1e-4


NEAR = {
    "epohs": "epochs",
    "num_epoch": "num_epochs",
    "batchsize": "batch_size",
    "learningrate": "learning_rate",
    "warmup-proportion": "warmup_proportion",
}


@pytest.mark.parametrize(("wrong", "right"), NEAR.items())
def test_near_miss_is_looked_for_among_both_spellings(wrong, right):
    config = made(TrainConfig)
    message = rf"^{wrong}: unknown option; did you mean {right}\?$"
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**TRAIN_NEEDS, **{wrong: 1})
    with pytest.raises(ConfigError, match=message):
        config[wrong] = 1


def test_misspelt_key_that_is_read_names_the_near_miss_and_an_attribute_that_is_none_stays_an_attribute_error():
    config = made(TrainConfig)
    with pytest.raises(KeyError, match=r"epohs: unknown option; did you mean epochs\?"):
        config["epohs"]
    with pytest.raises(AttributeError, match="epohs"):
        _ = config.epohs
    assert "epohs" not in config


def test_spellings_of_train_py_are_unknown_to_fine_tuning():
    for name in SPELLINGS.values():
        with pytest.raises(ConfigError, match=f"^{name}: unknown option"):
            FinetuneConfig(**{name: 1})
        assert not hasattr(FinetuneConfig(), name)


# ---------------------------------------------------------------- merging


@pytest.mark.parametrize("value", ["float32", "bfloat16", None])
def test_precision_of_a_merge_is_one_of_two_or_left_to_the_adapter(value):
    assert made(MergeConfig, training_precision=value).training_precision == value


@pytest.mark.parametrize("value", ["float16", "fp32", "BFLOAT16", ""])
def test_other_precisions_of_a_merge_are_refused(value):
    with pytest.raises(ConfigError, match=rf"^training_precision: must be 'float32' or 'bfloat16' \(got '{value}'\)$"):
        made(MergeConfig, training_precision=value)


def test_merge_leaves_the_precision_to_the_adapter_and_runs_no_code_of_a_model_by_default():
    config = made(MergeConfig)
    assert (config.training_precision, config.trust_remote_code) == (None, False)
    assert (config.base_model_path, config.lora_adapter_path, config.output_path) == ("m", Path("a"), Path("o"))


# ---------------------------------------------------------------- the notebook's dicts


def test_notebook_overrides_merge_into_the_config_they_name_and_keep_the_order():
    overrides = json.dumps({"VIS_CONFIG": {"seed": 7}, "FINETUNE_CONFIG": {"num_epochs": 2}})
    fine, infer, vis = notebook_configs(
        overrides, FINETUNE_CONFIG={"num_epochs": 1, "lora_r": 4}, INFERENCE_CONFIG={"batch_size": 3}, VIS_CONFIG={"seed": 1}
    )
    assert [type(config) for config in (fine, infer, vis)] == [FinetuneConfig, InferenceConfig, VisualizationConfig]
    assert (fine.num_epochs, fine.lora_r, infer.batch_size, vis.seed) == (2, 4, 3, 7)


def test_no_overrides_are_the_literals_as_they_stand():
    (config,) = notebook_configs("", INFERENCE_CONFIG={"batch_size": 3})
    assert config == InferenceConfig(batch_size=3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ('{"FINETUNE_CONF": {}}', r"^FINETUNE_CONF: unknown option; did you mean FINETUNE_CONFIG\?$"),
        ('{"FINETUNE_CONFIG": {"num_epoch": 1}}', r"^num_epoch: unknown option; did you mean num_epochs\?$"),
        ('{"FINETUNE_CONFIG": {"num_epochs": 0}}', "^num_epochs: must be greater"),
        ("{num_epochs: 2}", "^EBR_CONFIG_OVERRIDES is not JSON"),
        ("[1]", "^EBR_CONFIG_OVERRIDES must be a JSON object"),
        ('{"FINETUNE_CONFIG": 3}', "^EBR_CONFIG_OVERRIDES: FINETUNE_CONFIG must be a JSON object of options$"),
    ],
)
def test_wrong_overrides_say_what_is_wrong(overrides, message):
    with pytest.raises(ConfigError, match=message):
        notebook_configs(overrides, FINETUNE_CONFIG={})


def test_wrong_literal_name_is_refused_like_a_wrong_override():
    with pytest.raises(ConfigError, match="VIS_CONFG: unknown option; did you mean VIS_CONFIG"):
        notebook_configs("", VIS_CONFG={})


# ---------------------------------------------------------------- help


@pytest.mark.parametrize(("config", "name"), [(config, name) for config in ALL for name in config.model_fields])
def test_option_has_a_line_of_help_in_english_and_in_chinese(config, name):
    field = config.model_fields[name]
    english, chinese = field.description, field.json_schema_extra["zh"]
    assert english.strip()
    assert "\n" not in english + chinese
    assert not re.search("[\u4e00-\u9fff]", english)
    assert re.search("[\u4e00-\u9fff]", chinese)


@pytest.mark.parametrize(
    ("finetune_type", "option", "value"),
    [
        ("full", "lora_r", 4),
        ("full", "lora_alpha", 8),
        ("full", "lora_dropout", 0.0),
        ("full", "target_modules", ["query"]),
        ("full", "quantization_bits", 8),
        ("lora", "quantization_bits", 8),
    ],
)
def test_an_option_that_the_way_of_tuning_never_reads_is_refused(finetune_type, option, value):
    with pytest.raises(ConfigError, match=f"^{option}: has no meaning with finetune_type {finetune_type}"):
        FinetuneConfig(finetune_type=finetune_type, **{option: value}).check()
    FinetuneConfig(finetune_type=finetune_type).check()
    FinetuneConfig(finetune_type="qlora", **{option: value}).check()
