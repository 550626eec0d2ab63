"""The door in raw HTTP: what clients get that are not well behaved, or are not clients at all."""

import http.client
import json
import socket
import struct

import httpx2 as httpx
import openai
import pytest
from shoal.engine.errors import EngineLost, InvalidRequest, Overloaded

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def post(door, path="/v1/chat/completions", body=CHAT, **settings):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(door.url + path, content=content, timeout=60, **settings)


def error_of(answer, status):
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def test_curl_without_a_json_header_and_without_a_model(door):
    form = {"content-type": "application/x-www-form-urlencoded"}
    for headers in ({}, form, {"content-type": "text/plain"}):
        answer = post(door, headers=headers)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == "hello world"
        assert answer.json()["model"] == "scripted"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "empty"),
        (b"  ", "empty"),
        (b"{", "JSON"),
        (b'{"messages": [}', "JSON"),
        (b'{"messages": NaN}', "JSON"),
        (b'{"temperature": 1e999}', "JSON"),
        (b'{"prompt": "\xff\xfe"}', "UTF-8"),
        (b'{"prompt": "\\ud800"}', "JSON"),
        (b"[" * 100_000, "deep"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "deep"),
        (b"[1, 2]", "list"),
        (b'"hello"', "string"),
        (b"null", "null"),
        (b"{}", "required"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
def test_a_body_that_cannot_be_read(door, path, body, word):
    assert word in error_of(post(door, path, body), 400)["message"]


def test_nesting_inside_a_field_is_no_server_error(door):
    deep = json.loads("[" * 150 + "]" * 150)
    body = {**CHAT, "chat_template_kwargs": {"x": deep}}
    assert post(door, body=body).status_code in (200, 400)


def test_an_unknown_model_lists_those_that_are_served(door):
    for path, body in (
        ("/v1/chat/completions", {**CHAT, "model": "gpt-9"}),
        ("/v1/completions", {"prompt": "a", "model": "gpt-9", "stream": True}),
        ("/tokenize", {"prompt": "a", "model": "gpt-9"}),
        ("/detokenize", {"tokens": [5], "model": "gpt-9"}),
    ):
        error = error_of(post(door, path, body), 404)
        assert error["code"] == "model_not_found"
        assert error["param"] == "model"
        for name in ("gpt-9", "scripted", "alias/of it"):
            assert name in error["message"]


def test_unknown_routes_and_wrong_methods(door):
    error_of(httpx.get(door.url + "/v1/nothing"), 404)
    error_of(httpx.get(door.url + "/v1/models/"), 404)
    answer = httpx.get(door.url + "/v1/chat/completions")
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"
    error_of(httpx.delete(door.url + "/v1/models"), 405)


def test_models(door):
    models = door.client().models.list().data
    assert [model.id for model in models] == ["scripted", "alias/of it"]
    assert models[0].max_model_len == 256
    assert door.client().models.retrieve("scripted").owned_by == "shoal"
    assert door.client().models.retrieve("alias/of it").id == "alias/of it"
    with pytest.raises(openai.NotFoundError, match="scripted"):
        door.client().models.retrieve("gpt-9")


def test_an_alias_is_answered_by_the_first_name(door):
    assert post(door, body={**CHAT, "model": "alias/of it"}).json()["model"] == "scripted"


def test_tokenize_and_back(door, tokenizer):
    ids = tokenizer.encode("hello world")
    answer = post(door, "/tokenize", {"prompt": "hello world"}).json()
    assert answer == {"count": len(ids), "max_model_len": 256, "tokens": ids, "token_strs": None}
    spelt = post(door, "/tokenize", {"prompt": "hello world", "return_token_strs": True}).json()
    assert "".join(spelt["token_strs"]) == "hello world"
    chat = post(door, "/tokenize", CHAT).json()
    assert chat["tokens"] == tokenizer.encode("<|user|>hello<eos><|assistant|>", False)
    text = post(door, "/detokenize", {"tokens": chat["tokens"]}).json()
    assert text == {"prompt": "<|user|>hello<eos><|assistant|>"}
    assert "400" in error_of(post(door, "/detokenize", {"tokens": [400]}), 400)["message"]


def test_a_long_text_is_tokenized_beside_the_loop(door, tokenizer):
    text = "the quick brown fox " * 5000
    answer = post(door, "/tokenize", {"prompt": text}).json()
    assert answer["tokens"] == tokenizer.encode(text)


def test_what_lives_here(door):
    assert httpx.get(door.url + "/").json()["name"] == "shoal"
    for path in ("/", "/health", "/-/healthz"):
        answer = httpx.head(door.url + path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert httpx.get(door.url + "/version").json()["version"]
    assert httpx.get(door.url + "/-/healthz").text == "success"
    assert httpx.get(door.url + "/health").json()["status"] == "ready"


def test_health_follows_the_router(door):
    for state, code in (("loading", 503), ("down", 503), ("degraded", 200), ("ready", 200)):
        door.router.state = state
        answer = httpx.get(door.url + "/health")
        assert (answer.status_code, answer.json()["status"]) == (code, state)
        assert httpx.get(door.url + "/-/healthz").status_code == code


def test_while_loading_requests_are_told_to_come_back(door):
    door.router.state = "loading"
    door.router.links_ = []
    answer = post(door)
    assert "loading" in error_of(answer, 503)["message"]
    assert int(answer.headers["retry-after"]) >= 1
    assert httpx.get(door.url + "/v1/models").json() == {"object": "list", "data": []}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status", "retry"),
    [
        (Overloaded("1024 requests wait already", 2.5), 429, "3"),
        (EngineLost("the engine died"), 503, "2"),
        (InvalidRequest("no adapter of that name", "model"), 400, None),
    ],
)
def test_a_refusal_by_the_engine_is_a_status(door, refusal, status, retry, stream):
    door.link.refusal = refusal
    answer = post(door, body={**CHAT, "stream": stream})
    assert error_of(answer, status)["message"] == refusal.message
    assert answer.headers.get("retry-after") == retry


def test_the_client_raises_its_own_error_for_a_full_queue(door):
    door.link.refusal = Overloaded("full")
    with pytest.raises(openai.RateLimitError):
        door.client().chat.completions.create(model="scripted", messages=CHAT["messages"])


def test_request_ids(door):
    given = post(door, headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert given.json()["id"] == "chatcmpl-mine-1"
    made = [post(door).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    odd = post(door, headers={b"x-request-id": b"a\xff b"})
    assert odd.status_code == 200
    assert odd.headers["x-request-id"] != "a\xff b"
    assert httpx.get(door.url + "/nothing").headers["x-request-id"]
    ids = [request.id for request in door.link.seen]
    assert len(set(ids)) == len(ids)
    again = post(door, headers={"x-request-id": "mine-1"})
    assert again.json()["id"] == "chatcmpl-mine-1"
    assert door.link.seen[-1].id != door.link.seen[0].id


def test_keep_alive_survives_errors(door):
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=60)
    connection.connect()
    kept = connection.sock
    bad, good = b"{", json.dumps(CHAT).encode()
    for body, status in ((bad, 400), (good, 200), (bad, 400), (good, 200)):
        connection.request("POST", "/v1/chat/completions", body)
        answer = connection.getresponse()
        assert answer.status == status
        answer.read()
        assert connection.sock is kept
    connection.request("GET", "/nothing")
    assert connection.getresponse().read()
    assert connection.sock is kept
    connection.close()


def test_a_body_over_the_limit(open_door):
    door = open_door(max_body_bytes=1000)
    assert post(door).status_code == 200
    for headers in ({}, {"transfer-encoding": "chunked"}):
        answer = post(door, "/tokenize", {"prompt": "a" * 2000}, headers=headers)
        assert "1000" in error_of(answer, 413)["message"]


def test_keys(open_door):
    door = open_door(api_key=("first", "second"))
    paths = ("/v1/models", "/metrics", "/version", "/docs", "/openapi.json", "/", "/nothing")
    for path in paths:
        answer = httpx.get(door.url + path)
        assert error_of(answer, 401)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    error_of(post(door), 401)
    for path in ("/health", "/-/healthz"):
        assert httpx.get(door.url + path).status_code == 200
    for headers in (
        {"authorization": "Bearer first"},
        {"authorization": "bearer second"},
        {"x-api-key": "second"},
        {"authorization": "Bearer wrong", "x-api-key": "first"},
    ):
        assert post(door, headers=headers).status_code == 200
    for headers in (
        {"authorization": "Bearer firs"},
        {"authorization": "Basic first"},
        {"authorization": "first"},
        {"x-api-key": ""},
        {b"x-api-key": "schlüssel".encode()},
    ):
        error_of(post(door, headers=headers), 401)
    with pytest.raises(openai.AuthenticationError, match="API key"):
        door.client(api_key="wrong").models.list()
    assert door.client(api_key="second").models.list().data


def test_any_key_will_do_where_none_is_set(door):
    assert post(door, headers={"authorization": "Bearer whatever"}).status_code == 200


def test_cors_only_where_it_is_allowed(door, open_door):
    origin = {"origin": "https://app.example"}
    assert "access-control-allow-origin" not in post(door, headers=origin).headers
    allowed = open_door(allowed_origins=("https://app.example",), api_key=("k",))
    preflight = {**origin, "access-control-request-method": "POST"}
    answer = httpx.options(allowed.url + "/v1/chat/completions", headers=preflight)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    refused = post(allowed, headers=origin)
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    error_of(refused, 401)


def test_the_description_and_its_page_need_no_network(door):
    described = httpx.get(door.url + "/openapi.json").json()
    schemas = described["components"]["schemas"]
    for reference in _references(described):
        assert reference.removeprefix("#/components/schemas/") in schemas
    chat = described["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"]
    fields = schemas["ChatRequest"]["properties"]
    assert {"type": "null"} in fields["temperature"]["anyOf"]
    assert {"type": "null"} in fields["ignore_eos"]["anyOf"]
    assert fields["ignore_eos"]["default"] is False
    page = httpx.get(door.url + "/docs").text
    assert "openapi.json" in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_description_can_be_switched_off(open_door):
    door = open_door(disable_fastapi_docs=True)
    for path in ("/docs", "/openapi.json"):
        assert "/docs lists" not in error_of(httpx.get(door.url + path), 404)["message"]


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_a_proxy_may_strip_the_root_path_or_leave_it(open_door, prefix):
    door = open_door(root_path="/llm", api_key=("k",))
    assert httpx.get(door.url + prefix + "/health").status_code == 200
    error_of(httpx.get(door.url + prefix + "/v1/models"), 401)
    key = {"authorization": "Bearer k"}
    assert post(door, prefix + "/v1/chat/completions", headers=key).status_code == 200
    described = httpx.get(door.url + prefix + "/openapi.json", headers=key).json()
    assert described["servers"] == [{"url": "/llm"}]


def _references(value):
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item
            else:
                yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def test_garbage_on_the_socket_harms_nobody(door):
    with socket.create_connection(("127.0.0.1", door.port)) as rude:
        rude.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        rude.recv(1000)
    with socket.create_connection(("127.0.0.1", door.port)) as rude:
        rude.sendall(b"POST /v1/completions HTTP/1.1\r\ncontent-length: 100\r\n\r\n{")
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert post(door).status_code == 200


def test_our_own_fault_is_an_error_object_and_keeps_its_words(door, monkeypatch):
    def fail():
        raise RuntimeError("words for the log alone")

    monkeypatch.setattr(door.router, "status", fail)
    monkeypatch.setattr(door.router, "choose", lambda model, request: fail())
    for answer in (httpx.get(f"{door.url}/health"), post(door)):
        error = error_of(answer, 500)
        assert error["code"] == "internal_error"
        assert "words" not in error["message"]
        assert answer.headers["x-request-id"]


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_server_error(open_door):
    door = open_door()
    with socket.create_connection(("127.0.0.1", door.port)) as half:
        half.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
    counts = []
    while not counts:
        figures = httpx.get(f"{door.url}/metrics").text.splitlines()
        counts = [line for line in figures if "http_requests_total" in line and "/tokenize" in line]
    assert len(counts) == 1
    assert 'status="499"' in counts[0]
