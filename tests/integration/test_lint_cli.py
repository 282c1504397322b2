"""`inferscope lint` as a process: what it prints and what it exits with."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from conftest import build_llama

PROGRAM = "import sys; from inferscope.cli.main import main; sys.exit(main())"


def lint(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "lint", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "100", **variables},
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(transformers, tmp_path_factory):
    """A tiny model with a tokenizer, as `save_pretrained` leaves them."""
    tokenizers = pytest.importorskip("tokenizers")
    place = tmp_path_factory.mktemp("tiny")
    words = {"<unk>": 0, **{f"w{i}": i for i in range(1, 1000)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))  # noqa: S106 - no password
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")  # noqa: S106
    tokenizer.save_pretrained(place)
    build_llama(transformers).save_pretrained(place)
    return str(place)


def test_within_the_limits_it_exits_0(folder):
    done = lint(folder, "--max-syncs-per-token", "1", "--max-launches-per-token", "500")
    assert done.returncode == 0, done.stderr
    assert "1 per token  Tensor.__bool__  transformers/generation/utils.py:" in done.stdout


def test_above_a_limit_it_exits_4_and_says_so_in_one_line_after_the_report(folder):
    done = lint(folder, "--max-syncs-per-token", "0", "--max-launches-per-token", "5", "--json")
    assert done.returncode == 4
    report = json.loads(done.stdout)
    assert report["syncs_per_token"] == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error[limit-exceeded]: ")
    assert "1 syncs per token, at most 0 allowed" in line
    assert f"{report['launches_per_token']:g} launches per token, at most 5 allowed" in line


def test_json_is_the_same_each_time(folder):
    first, second = (lint(folder, "--json", "--new-tokens", "4", "--batch-size", "2") for _ in range(2))
    assert (first.returncode, first.stdout) == (0, second.stdout)
    report = json.loads(first.stdout)
    assert (report["counted_tokens"], report["batch_size"]) == ([2, 4], 2)


@pytest.mark.parametrize(
    ("arguments", "slug", "named"),
    [
        (("--new-tokens", "2"), "bad-setting", "--new-tokens 2"),
        (("--batch-size", "0"), "bad-setting", "--batch-size 0"),
        (("--max-syncs-per-token", "-1"), "bad-setting", "--max-syncs-per-token -1"),
        (("--max-launches-per-token", "nan"), "bad-setting", "--max-launches-per-token nan"),
        (("--max-syncs-per-token", "few"), "usage", "--max-syncs-per-token"),
        (("./no-such-model",), "model-not-found", "no-such-model"),
    ],
)
def test_a_mistake_is_one_line_and_exits_2(arguments, slug, named):
    done = lint(*arguments)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert line.startswith(f"error[{slug}]: ")
    assert named in line
    assert not done.stdout


def test_help_has_examples_and_exit_codes():
    done = lint("--help")
    assert done.returncode == 0
    assert "inferscope lint ./my-model --max-syncs-per-token 1" in done.stdout
    assert "Exit codes" in done.stdout
