"""Real clients of OpenAI's API, each in its own environment, against a running shoal.

`make clients` makes the environments; a test whose environment is missing says how.
"""

import json
import re
import shutil

import pytest

OF_OPENAI = [
    "tests/api_resources/test_completions.py",
    "tests/api_resources/chat/test_completions.py",
    "tests/api_resources/test_models.py",
]
WITH_BUILT_FEATURES = "(create and not all_params) or (Models and (list or retrieve))"


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("openai-2", "use_openai.py"),
        ("openai-3", "use_openai.py"),
        ("litellm", "use_litellm.py"),
        ("langchain-openai", "use_langchain.py"),
    ],
)
def test_a_client_works(run_client, name, script):
    assert "all is well" in run_client(name, "PYTHON", f"HERE/{script}", "URL")


def test_openai_node(run_client):
    if shutil.which("node") is None:
        pytest.skip("no node here")
    said = run_client("openai-node", "node", "HERE/use_openai_node.mjs", "URL", "ENV")
    assert "all is well" in said


def test_openais_own_tests(run_client):
    command = ["PYTHON", "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    said = run_client(
        "openai-tests",
        *command,
        *OF_OPENAI,
        "-k",
        WITH_BUILT_FEATURES,
        folder="ENV/source",
        TEST_API_BASE_URL="URL/v1",
    )
    passed = re.search(r"(\d+) passed", said)
    assert passed
    assert int(passed[1]) >= 75, said


def test_lm_eval_agrees_with_its_transformers_backend(run_client, tiny_model):
    command = ["PYTHON", "HERE/use_lm_eval.py", "URL", str(tiny_model)]
    assert "all is well" in run_client("lm-eval", *command, HF_HUB_OFFLINE="1")


def test_guidellm_counts_no_error(run_client, tiny_model, tmp_path):
    run_client(
        "guidellm",
        *("ENV/bin/guidellm", "run", "--disable-console-interactive"),
        *("--backend", "kind=openai_http,target=URL,model=shoal-tiny"),
        *("--tokenizer", f"kind=huggingface_auto,model={tiny_model}"),
        *("--profile", "kind=concurrent,streams=4"),
        *("--constraint", "kind=max_requests,count=12"),
        *("--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16"),
        HF_HUB_OFFLINE="1",
    )
    report = json.loads((tmp_path / "benchmarks.json").read_text())
    totals = report["benchmarks"][0]["metrics"]["request_totals"]
    assert totals == {"successful": 12, "errored": 0, "incomplete": 0, "total": 12}
