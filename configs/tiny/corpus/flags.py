"""shoal's flags as the bundled model knows them: what each means, its default, how one asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """`topics` complete "How do I set ..."; `values` are examples, empty for a bare switch."""

    name: str
    meaning: str
    default: str
    topics: tuple[str, ...]
    values: tuple[str, ...] = ()


def _flag(name: str, meaning: str, default: str, topics: str, values: str = "") -> Flag:
    return Flag(
        name=name,
        meaning=meaning,
        default=default,
        topics=tuple(topics.split("|")),
        values=tuple(values.split()),
    )


FLAGS = (
    _flag(
        "port", "is the port on which the server listens", "8000",
        "the port|the server port|another port", "8001 8080 9000 9001 5000 7777 8888",
    ),
    _flag(
        "host", "is the address on which the server listens", "127.0.0.1",
        "the host|the address|the network interface", "0.0.0.0 127.0.0.1 10.0.0.5",
    ),
    _flag(
        "max-model-len", "is the longest context in tokens, prompt and answer together",
        "what the model allows",
        "the context length|the maximum length|the longest context",
        "1024 2048 4096 8192 16384 32k",
    ),
    _flag(
        "max-num-seqs", "limits how many sequences run in one step", "256",
        "the batch size|the number of running sequences|the number of requests at once",
        "8 16 32 64 128 512",
    ),
    _flag(
        "max-num-batched-tokens", "is the token budget of one step; long prompts are cut into "
        "chunks that fit", "2048",
        "the token budget|the tokens in a step|the size of a prefill chunk",
        "512 1024 4096 8192",
    ),
    _flag(
        "gpu-memory-utilization", "is the share of the free GPU memory that shoal may use; on "
        "CPUs it is not used", "0.9",
        "the GPU memory|the share of GPU memory|how much GPU memory is used",
        "0.5 0.7 0.8 0.85 0.95",
    ),
    _flag(
        "tensor-parallel-size", "cuts every layer over this many ranks", "1",
        "tensor parallelism|the number of GPUs for a layer|tensor parallel ranks", "2 4 8",
    ),
    _flag(
        "pipeline-parallel-size", "spreads the layers over this many stages", "1",
        "pipeline parallelism|the number of stages|pipeline stages", "2 3 4",
    ),
    _flag(
        "replicas", "is the number of copies of the model that serve requests", "1",
        "the number of replicas|the number of copies|more copies of the model", "2 3 4 8",
    ),
    _flag(
        "dtype", "is the number format of weights and activations: auto, float32, bfloat16, "
        "float16 or half", "auto",
        "the data type|the precision|the number format", "float32 bfloat16 float16",
    ),
    _flag(
        "block-size", "is the number of tokens in one block of the KV cache",
        "16 on CUDA and 32 on CPUs",
        "the block size|the size of a cache block|tokens in a KV block", "8 16 32 64",
    ),
    _flag(
        "served-model-name", "is the name under which clients find the model",
        "the model path",
        "the model name|the name of the model|the name that clients see",
        "tiny chat mymodel assistant",
    ),
    _flag(
        "api-key", "is the key that clients must send as a Bearer token", "no key",
        "an API key|a password|the key for clients", "secret abc123 mykey",
    ),
    _flag(
        "config", "reads the flags from a YAML file; the command line wins", "no file",
        "a config file|the YAML file|the configuration file",
        "shoal.yaml config.yaml server.yaml",
    ),
    _flag(
        "local", "runs the server in one process without Ray", "off",
        "a single process|serving without Ray|local mode",
    ),
    _flag(
        "seed", "is the seed of the random numbers in sampling", "0",
        "the seed|the random seed|the random numbers", "1 7 42 123",
    ),
    _flag(
        "enforce-eager", "runs every step without recorded graphs", "off",
        "eager mode|running without CUDA graphs|steps without graphs",
    ),
    _flag(
        "load-format", "says how the weights are loaded; dummy makes random weights", "auto",
        "the load format|the format of the weights|random weights",
        "auto safetensors dummy",
    ),
    _flag(
        "kv-cache-memory-bytes", "is the size of the KV cache in bytes", "what fits",
        "the size of the KV cache|the cache memory|the bytes of the KV cache",
        "1G 2G 4G 512M",
    ),
    _flag(
        "num-gpu-blocks-override", "sets the number of KV blocks by hand", "what fits",
        "the number of KV blocks|the number of blocks|the block count", "100 512 1000 4096",
    ),
    _flag(
        "shutdown-timeout", "is how many seconds running streams may finish when the server stops",
        "30",
        "the shutdown time|the time to finish streams|how long a stop may take", "5 10 60 120",
    ),
    _flag(
        "log-requests", "writes prompts and parameters of requests to the log", "off",
        "logging of prompts|the request log|logs with prompts",
    ),
    _flag(
        "uvicorn-log-level", "is the log level of the web server", "info",
        "the log level|the web server log|the level of logging", "debug warning error",
    ),
    _flag(
        "enable-prefix-caching", "keeps the blocks of prompts that begin alike", "on",
        "prefix caching|reuse of prompts|the prefix cache",
    ),
    _flag(
        "max-waiting", "limits how many requests may wait; one more is answered with 429", "1024",
        "the queue length|the number of waiting requests|the longest queue", "64 128 512",
    ),
    _flag(
        "threads", "is the number of CPU threads that an engine computes with",
        "its share of the cores",
        "the number of threads|the CPU threads|the number of cores", "1 2 4 8",
    ),
)  # fmt: skip
