"""/openapi.json held against the server that gives it, by schemathesis."""

from tests.cluster.clients.conftest import places

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
)
"""All but that whatever fits the schema is accepted: a schema cannot say which token ids a model
has, which model is served, or that two fields go together."""


def test_the_server_does_what_its_description_says(run_client, serve):
    places("schemathesis")
    said = run_client(
        "schemathesis",
        *("ENV/bin/schemathesis", "run", "URL/openapi.json"),
        *("--phases", "coverage,fuzzing,stateful", "--max-examples", "25", "--seed", "1"),
        *("--checks", ",".join(CHECKS), "--request-timeout", "100"),
        url=serve("--max-model-len", "48", "--served-model-name", "shoal-tiny"),
    )
    assert "12 selected / 12 total" in said, said
