"""Keys that vLLM knows and ServeConfig does not hold: short and other names, idle ones, refused."""

from __future__ import annotations

from collections.abc import Mapping

from ..engine import names as engine_names
from ..engine import unbuilt as engine_unbuilt
from ..engine.names import Foreign, because

SHORT: Mapping[str, str] = {
    "-c": "--config",
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
    "-n": "--nnodes",
    "-r": "--node-rank",
    "-ep": "--enable-expert-parallel",
    "-dcp": "--decode-context-parallel-size",
    "-pcp": "--prefill-context-parallel-size",
    "-dpn": "--data-parallel-rank",
    "-dpr": "--data-parallel-start-rank",
    "-dpl": "--data-parallel-size-local",
    "-dpa": "--data-parallel-address",
    "-dpp": "--data-parallel-rpc-port",
    "-dpb": "--data-parallel-backend",
    "-dph": "--data-parallel-hybrid-lb",
    "-dpe": "--data-parallel-external-lb",
    "-dpm": "--data-parallel-multi-port-external-lb",
    "-asc": "--api-server-count",
    "-sc": "--speculative-config",
    "-cc": "--compilation-config",
    "-ac": "--attention-config",
    "-dc": "--diffusion-config",
    "-O": "--optimization-level",
}
"""vLLM's short flags."""

RENAMED: Mapping[str, str] = {
    "model_tag": "model",
    "data_parallel_size": "replicas",
    "device_memory_utilization": "gpu_memory_utilization",
    "max_num_queued_reqs": "max_waiting",
    "log_level": "uvicorn_log_level",
    "enable_log_requests": "log_requests",
    "disable_log_requests": "!log_requests",
    "disable_async_scheduling": "!async_scheduling",
    "use_cuda_graph": "!enforce_eager",
}
"""Other names of a key; `!` turns true into false."""

IDLE: Mapping[str, Foreign] = {
    **engine_names.IDLE,
    **because("requests are logged only with --log-requests", disable_uvicorn_access_log=False),
    **because("X-Request-Id is always answered", enable_request_id_headers=False),
    **because(
        "cached prompt tokens are always counted in usage", enable_prompt_tokens_details=False
    ),
    **because("/docs never needs a network", enable_offline_docs=False),
    **because("/tokenizer_info is always answered", enable_tokenizer_info_endpoint=False),
    **because("gateways are made with --gateways N", disable_frontend_multiprocessing=False),
    **because("answers are never logged", enable_log_deltas=True),
    **because(
        "only generating models are built, and no routes but OpenAI's",
        enable_flash_late_interaction=True,
        cohere_is_reasoning_model=True,
        cohere_format="cmd4",
        anthropic_disabled_thinking_effort="auto",
    ),
}
"""Keys that are taken and change nothing, many of them dropped by vLLM itself."""

NOT_BUILT: Mapping[str, Foreign] = {
    **{k: v for k, v in engine_unbuilt.NOT_BUILT.items() if k not in RENAMED},
    **because("serving on a Unix socket is not built yet; use --host and --port", uds=None),
    **because("gRPC is not built yet", grpc=False, grpc_port=None),
    **because("several front ends are made with --gateways N", api_server_count=1),
    **because("nodes join through Ray: `ray start --address=...`", headless=False),
    **because(
        "replicas are watched by Ray Serve",
        data_parallel_supervisor_port=9256,
        dp_supervisor_probe_interval_s=5,
        dp_supervisor_probe_timeout_s=5,
        dp_supervisor_probe_failure_threshold=3,
    ),
    **because(
        "requests are logged only with --log-requests", disable_access_log_for_endpoints=None
    ),
    **because("code from elsewhere is not run inside the gateway", middleware=()),
    **because(
        "logging is set by --log-dir and --uvicorn-log-level",
        log_config_file=None,
        logging_config=None,
        log_error_stack=False,
    ),
    **because("answers are never logged", enable_log_outputs=False),
    **because("the load is on /metrics", enable_server_load_tracking=False),
    **because(
        "such metrics are not built yet",
        show_hidden_metrics_for_version=None,
        enable_per_request_metrics=False,
        kv_cache_metrics=False,
        kv_cache_metrics_sample=0.01,
        cudagraph_metrics=False,
        custom_histogram_buckets=None,
        enable_mfu_metrics=False,
        enable_logging_iteration_details=False,
    ),
    **because(
        "clients ask for it by stream_options.include_usage", enable_force_include_usage=False
    ),
    **because("comments that keep a stream alive are not built yet", sse_keep_alive_interval=0),
    **because(
        "routes for splitting a server are not built", tokens_only=False, enable_scale_out=False
    ),
    **because(
        "system_fingerprint names the weights", fingerprint_mode={"full"}, fingerprint_value=None
    ),
    **because("tokens as ids are not built yet", return_tokens_as_token_ids=False),
    **because("the template's own form is always used", chat_template_content_format="auto"),
    **because("templates of callers are never run", trust_request_chat_template=False),
    **because("images, audio and video are not built yet", trust_request_mm_kwargs=False),
    **because("default template arguments are not built yet", default_chat_template_kwargs=None),
    **because(
        "tool calls are not built yet",
        tool_parser_plugin=None,
        tool_server=None,
        tool_strict_level="auto",
        exclude_tools_when_tool_choice_none=False,
    ),
    **because("prompt adapters are not built", prompt_adapters=()),
    **because(
        "certificates of clients are not checked yet",
        ssl_ca_certs=None,
        ssl_cert_reqs=0,
    ),
    **because("choosing ciphers is not built yet", ssl_ciphers=None),
    **because("certificates are read once, at start", enable_ssl_refresh=False),
    **because("bodies are bounded by --max-body-bytes", h11_max_incomplete_event_size=4 * 2**20),
    **because("the header count is not adjustable", h11_max_header_count=256),
    **because("variables that nothing reads are named at start", fail_on_environ_validation=False),
}
"""Keys that are refused unless their value asks for nothing."""
