"""Tokens and keys are in nothing that is written down."""

import copy
import dataclasses
import json
import pickle
import sys
from pathlib import Path

import pytest

from hf_clars import ClarsTrainer, ClarsTrainingArguments
from hf_clars.comparison.sources.rows import flat_config
from hf_clars.safety.secrets import hidden_in, hidden_in_words, is_secret, without_secrets

from .helpers.models import Classifier, dataset
from .helpers.processes import run_script
from .helpers.training import arguments

TOKEN = "hf_" + "aB3" * 11 + "c"
PASSWORD = "correct-horse"


@pytest.mark.parametrize(
    "key",
    ["token", "hub_token", "push_to_hub_token", "HF_TOKEN", "api_key", "wandb_api_key", "apikey", "password", "secret",
     "client_secret", "aws_secret_access_key", "auth", "use_auth_token", "db.password", "credentials", "tokens",
     "private-key", "sas", "accessToken", "hubToken", "clientSecret", "dbPassword", "awsSecretKey"],
)  # fmt: skip
def test_what_is_called_a_secret(key: str) -> None:
    assert is_secret(key)
    assert without_secrets({"a": [{key: "xyz"}]}) == {"a": [{key: f"<{key.upper()}>"}]}


@pytest.mark.parametrize(
    "key", ["pad_token", "eos_token", "pad_token_id", "max_tokens", "num_tokens", "include_num_input_tokens_seen",
            "average_tokens_across_devices", "key", "tokenizer", "author", "monkey", "author_key_words", "compass",
            "padToken", "maxTokens"],
)  # fmt: skip
def test_what_is_none(key: str) -> None:
    assert not is_secret(key)


def test_secrets_in_texts(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    assert hidden_in(f"https://me:{PASSWORD}@host/path") == "https://<hidden>@host/path"
    assert hidden_in("https://me:at@night@host/path") == "https://<hidden>@host/path"
    assert hidden_in("https://host/a?x=1&X-Amz-Signature=abc&y=2") == "https://host/a?x=1&X-Amz-Signature=<hidden>&y=2"
    assert hidden_in(f"got {TOKEN}!") == "got <hidden>!"
    assert hidden_in("key " + "0123456789" * 4) == "key <hidden>"
    assert json.loads(hidden_in('{"token": "x", "depth": 3}')) == {"token": "<TOKEN>", "depth": 3}
    for text in ("hf://datasets/me/x@main/a", "me@host", "hf_clars", "f" * 40, "resnet50.a1_in1k", "{}", "{x}"):
        assert hidden_in(text) == text
    assert hidden_in_words(["--hub_token", "a", "--seed", "1", "--hub-token=b", "--token", "--lr", "1", "x"]) == [
        "--hub_token", "<HUB_TOKEN>", "--seed", "1", "--hub-token=<HUB_TOKEN>", "--token", "--lr", "1", "x",
    ]  # fmt: skip
    assert flat_config({"a": {"api_key": "x"}, "dataset": f"https://u:{PASSWORD}@h"}) == {
        "a.api_key": "<API_KEY>", "dataset": "https://<hidden>@h",
    }  # fmt: skip


def test_what_has_no_secret_is_as_it_was() -> None:
    value = {"a": 1, "b": [1.5, None, True, "text"], "c": {"d": (1, 2)}, "hub_token": None, "tokens": 5}
    assert without_secrets(value) == value


def test_copies_of_arguments_keep_secrets_and_pickles_have_none(tmp_path) -> None:
    args = ClarsTrainingArguments(output_dir=str(tmp_path), use_cpu=True, hub_token=TOKEN)
    assert dataclasses.replace(args).hub_token == TOKEN
    args.lr_scheduler_kwargs = {"power": 2.0, "token": PASSWORD}
    for same in (copy.copy(args), copy.deepcopy(args)):
        assert (same.hub_token, same.lr_scheduler_kwargs) == (TOKEN, {"power": 2.0, "token": PASSWORD})
    pickled = pickle.dumps(args)
    assert TOKEN.encode() not in pickled
    assert PASSWORD.encode() not in pickled
    again = pickle.loads(pickled)
    assert (again.hub_token, again.lr_scheduler_kwargs) == (None, {"power": 2.0, "token": "<TOKEN>"})
    assert again.learning_rate == args.learning_rate
    assert args.hub_token == TOKEN


def files_with(folder: Path, *secrets: str) -> list[str]:
    return [
        str(file.relative_to(folder))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and any(secret.encode() in file.read_bytes() for secret in secrets)
    ]


def test_nothing_that_a_training_leaves_has_a_secret(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--hub_token", TOKEN])
    args = arguments(
        tmp_path, hub_token=TOKEN, report_to=["tensorboard"], save_strategy="steps", save_steps=1, max_steps=2
    )
    about = {"dataset": f"https://me:{PASSWORD}@host/data", "model_kwargs": {"token": PASSWORD}}
    trainer = ClarsTrainer(Classifier(), args, train_dataset=dataset(64), about=about)
    trainer.train()
    trainer.save_model()
    assert len(list(tmp_path.rglob("training_args.bin"))) == 3
    assert files_with(tmp_path, TOKEN, PASSWORD) == []
    assert json.loads((tmp_path / "run.json").read_text())["config"]["hub_token"] == "<HUB_TOKEN>"
    assert trainer.args.hub_token == TOKEN


WANDB = """
import json, sys
from hf_clars import ClarsTrainer, ClarsTrainingArguments
from tests.helpers.models import Classifier, dataset
token, password = sys.argv[1:3]
sys.argv = ["train.py", "--hub_token", token, "--model_kwargs", json.dumps({"password": password})]
args = ClarsTrainingArguments(
    output_dir="run", total_batch_size=32, use_cpu=True, disable_tqdm=True, max_steps=1, learning_rate=1.0,
    report_to="wandb", hub_token=token,
)
about = {"dataset": f"https://me:{password}@host/data", "model_kwargs": {"token": password}}
ClarsTrainer(Classifier(), args, train_dataset=dataset(64), about=about).train()
"""


@pytest.mark.slow
def test_nothing_that_wandb_keeps_has_a_secret(tmp_path) -> None:
    run_script(WANDB, tmp_path, TOKEN, PASSWORD, environment={"WANDB_MODE": "offline"})
    written = [*tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert len(written) == 1
    assert b"<HUB_TOKEN>" in written[0].read_bytes()
    assert files_with(tmp_path, TOKEN, PASSWORD) == []
