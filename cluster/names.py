"""Keys that vLLM knows and ServeConfig does not hold: other names, idle ones, unbuilt features."""

from __future__ import annotations

from collections.abc import Mapping

from ..engine import config as engine_config

RENAMED: Mapping[str, str] = {
    "model_tag": "model",
    "enable_log_requests": "log_requests",
    "disable_log_requests": "!log_requests",
    "disable_async_scheduling": "!async_scheduling",
    "use_cuda_graph": "!enforce_eager",
}
"""Other names of a key; `!` turns true into false."""

CHANGES_NOTHING: Mapping[str, str] = {
    "disable_log_stats": "statistics are on /metrics, never in the log",
    "disable_uvicorn_access_log": "requests are logged only with --log-requests",
    "enable_request_id_headers": "X-Request-Id is always answered",
    "enable_prompt_tokens_details": "cached prompt tokens are always counted in usage",
    "enable_tokenizer_info_endpoint": "/tokenizer_info is always answered",
    "enable_offline_docs": "/docs never needs a network",
    "disable_frontend_multiprocessing": "gateways are made with --gateways N",
    "use_v2_block_manager": "there is one block manager",
    "use_tqdm_on_load": "loading always shows its progress",
    "disable_custom_all_reduce": "there is no such kernel to switch off",
}
"""Keys of vLLM, all true or false, that are taken and change nothing, and why."""

NOT_BUILT: Mapping[str, tuple[object, str]] = {
    **engine_config.NOT_BUILT,
    "uds": (None, "serving on a Unix socket is not built yet; use --host and --port"),
    "api_server_count": (1, "several front ends are made with --gateways N"),
    "headless": (False, "nodes join through Ray: `ray start --address=...`"),
    "disable_access_log_for_endpoints": (None, "requests are logged only with --log-requests"),
    "middleware": (None, "code from elsewhere is not run inside the gateway"),
    "log_config_file": (None, "logging is set by --log-dir and --uvicorn-log-level"),
    "enable_log_outputs": (False, "answers are never logged"),
    "enable_server_load_tracking": (False, "the load is on /metrics"),
    "enable_force_include_usage": (False, "clients ask for it by stream_options.include_usage"),
    "return_tokens_as_token_ids": (False, "tokens as ids are not built yet"),
    "chat_template_content_format": ("auto", "the template's own form is always used"),
    "trust_request_chat_template": (False, "templates of callers are never run"),
    "default_chat_template_kwargs": (None, "default template arguments are not built yet"),
    "tool_parser_plugin": ("", "tool calls are not built yet"),
    "tool_server": (None, "tool calls are not built yet"),
    "exclude_tools_when_tool_choice_none": (False, "tool calls are not built yet"),
    "prompt_adapters": (None, "prompt adapters are not built"),
    "ssl_ca_certs": (None, "certificates of clients are not checked yet"),
    "ssl_cert_reqs": (0, "certificates of clients are not checked yet"),
    "ssl_ciphers": (None, "choosing ciphers is not built yet"),
    "enable_ssl_refresh": (False, "certificates are read once, at start"),
    "h11_max_incomplete_event_size": (4 * 2**20, "bodies are bounded by --max-body-bytes"),
    "h11_max_header_count": (256, "the header count is not adjustable"),
}
"""Keys of vLLM that are known and refused.

The value that changes nothing, and the reason in plain words.
"""
