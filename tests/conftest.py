"""What every test shares: the tree under test, a quiet environment, small models."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import httpx2 as httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent
MARK = "SHOAL_TEST_SESSION"
LEAVE_S = 30.0

os.environ.update(
    {
        MARK: uuid.uuid4().hex,
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GOMP_SPINCOUNT": "1000",  # read when torch is imported; see engine/local.py
    }
)


def _has_gpu() -> bool:
    """Whether torch will see a GPU, as far as can be told without loading it: by what it was built
    for, and the driver's node: NVIDIA's, AMD's, or WSL's for either.
    """
    build = metadata.version("torch").partition("+")[2]
    driver = "/dev/kfd" if build.startswith("rocm") else "/dev/nvidiactl"
    return build != "cpu" and any(Path(node).exists() for node in (driver, "/dev/dxg"))


if not _has_gpu():
    # Without a GPU kernels are interpreted; read when triton is first imported, by any test.
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))


def pytest_configure() -> None:
    # An answer may take longer than httpx's 5 s on a machine that computes other tests meanwhile.
    httpx._config.DEFAULT_TIMEOUT_CONFIG.read = 60.0
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in the background so, and every process of ours would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        import shoal
    except ImportError:
        raise pytest.UsageError(
            "shoal is not installed here: use `make test`, or `pip install -e '.[test]'`"
        ) from None
    found = Path(shoal.__file__ or "").resolve().parent
    if found != ROOT:
        raise pytest.UsageError(f"`import shoal` finds {found}, but these tests are of {ROOT}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {"gpu": _why_no_gpu(items), "netns": _why_no_netns()}
    for item in items:
        for mark, reason in reasons.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu(items: list[pytest.Item]) -> str | None:
    if not any(item.get_closest_marker("gpu") for item in items):
        return None
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def _why_no_netns() -> str | None:
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None if Path("/proc/self/ns/net").exists() else "no network namespaces here"


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Fails, and ends them, when processes that a test started outlive the tests."""
    yield
    deadline = time.monotonic() + LEAVE_S
    while (left := _descendants()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if left:
        names = "\n".join(f"  {pid}: {command}" for pid, command in left.items())
        pytest.fail(f"processes were left behind (now killed):\n{names}", pytrace=False)


def _descendants() -> dict[int, str]:
    """Processes that inherited this test run's mark, orphans too: pid to command line."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command:
                    found[int(folder.name)] = command[:200]
        except OSError:
            continue
    return found


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of the bundled model."""
    folder = ROOT / "configs" / "tiny"
    assert (folder / "model.safetensors").is_file(), f"no bundled model in {folder}"
    return folder


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a 2-layer model with random weights in transformers' layout, once an architecture.

    `random_model("LlamaForCausalLM")` gives its folder; it holds no tokenizer.
    """
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            _save_random(architecture, folder)
            made[architecture] = folder
        return made[architecture]

    return make


def _save_random(architecture: str, folder: Path) -> None:
    import torch
    import transformers

    model_class = getattr(transformers, architecture)
    config = model_class.config_class(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        architectures=[architecture],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(config).to(torch.float32).save_pretrained(folder)
