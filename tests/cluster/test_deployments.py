"""What Serve is told of a deployment, as far as no Ray is asked for it."""

from __future__ import annotations

import pytest
from ray.serve._private.constants import REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD
from shoal.cluster.deployments import LEAST_CHECK_S, SILENT_S, health_check_s


@pytest.mark.parametrize(("stall_s", "given_up_s"), [(30.0, 30.0), (0.0, SILENT_S)])
def test_who_answers_no_health_check_is_given_up_after_the_stall_timeout(
    stall_s: float, given_up_s: float
) -> None:
    checks = REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD
    assert checks * health_check_s(stall_s) == pytest.approx(given_up_s)


def test_a_short_stall_timeout_makes_no_check_that_a_busy_machine_would_miss() -> None:
    assert health_check_s(0.5) == LEAST_CHECK_S
