"""A request that kills every engine it comes to, among others that do not: real processes, and
shoal's own door; the engines are scripted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from scripted import POISON
from served import Served, wait
from streams import metric

COMPANY = 900


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"), replicas=2, door="real", name="suspects")
    try:
        yield served.wait_ready()
    finally:
        served.clean()


class Asked(threading.Thread):
    """A completion of so many tokens."""

    def __init__(self, served: Served, max_tokens: int) -> None:
        super().__init__(daemon=True)
        (card,) = httpx.get(f"http://127.0.0.1:{served.port}/v1/models").json()["data"]
        self.url = f"http://127.0.0.1:{served.port}/v1/completions"
        self.body = {"model": card["id"], "prompt": "a", "max_tokens": max_tokens}
        self.start()

    def run(self) -> None:
        self.answer = httpx.post(self.url, json=self.body, timeout=240)

    def told(self) -> httpx.Response:
        self.join(240)
        return self.answer


def test_it_is_found_out_after_three_engines_and_its_company_is_whole(served: Served) -> None:
    url = f"http://127.0.0.1:{served.port}"
    company = [Asked(served, COMPANY) for _ in range(6)]
    wait(lambda: metric(url, "num_requests_running") == 6)
    poison = Asked(served, POISON)
    refused: dict[str, Any] = poison.told().json()["error"]
    assert poison.told().status_code == 500 and refused["code"] == "request_kills_engine"
    assert "3 engines died" in refused["message"]
    answers = [asked.told().json() for asked in company]
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [COMPANY] * 6
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert metric(url, "failovers_total") == 3
    assert metric(url, "streams_moved_total") >= 3
