"""/tokenize, /detokenize and /tokenizer_info, in vLLM's shapes."""

from __future__ import annotations

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from .off_loop import off_loop
from .prompts import chat_prompt, check_ids, decode, encode
from .protocol import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest, parse
from .serving import Serving, json_response


async def tokenize(serving: Serving, http: HTTPRequest) -> Response:
    """The token ids of a text, or of a conversation as the chat route would see it."""
    body = await serving.read_json(http)
    request: TokenizeTextRequest | TokenizeChatRequest
    if isinstance(body, dict) and body.get("messages") is not None:
        request = parse(TokenizeChatRequest, body)
    else:
        request = parse(TokenizeTextRequest, body)
    card = serving.card(request.model)
    tokenizer = await serving.tokenizer(card)
    if isinstance(request, TokenizeChatRequest):
        _, ids = await chat_prompt(request, tokenizer)
    else:
        ids = await encode(tokenizer, request.prompt, request.add_special_tokens)
    texts = None
    if request.return_token_strs:
        texts = await off_loop(len(ids), lambda: [tokenizer.token_text(token) for token in ids])
    return json_response(
        {
            "count": len(ids),
            "max_model_len": card.max_model_len,
            "tokens": ids,
            "token_strs": texts,
        }
    )


async def detokenize(serving: Serving, http: HTTPRequest) -> Response:
    """The text of token ids, special tokens included."""
    request = await serving.read(http, DetokenizeRequest)
    card = serving.card(request.model)
    check_ids(request.tokens, card, "tokens")
    tokenizer = await serving.tokenizer(card)
    return json_response({"prompt": await decode(tokenizer, request.tokens)})


async def tokenizer_info(serving: Serving, http: HTTPRequest) -> Response:
    """The configuration of a model's tokenizer, its chat template included."""
    card = serving.card(http.query_params.get("model"))
    tokenizer = await serving.tokenizer(card)
    return json_response(tokenizer.info)
