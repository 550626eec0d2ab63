"""Ray's environment variables on every node that a deployment of shoal starts.

`deploy/ray.env` holds the same ones for those that start nodes themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

GCS_FOLDER = "/var/lib/shoal/gcs"
"""Where the head keeps what its GCS knows; it must outlive the GCS."""

ON_EVERY_NODE: Mapping[str, str] = {
    # A lost node is known as such after some 4 s; Ray's own defaults take a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    # Replicas go on without a GCS for this long; by default all of Ray ends itself after 60 s.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    # Said on every node: a Ray that ran there before may have switched it on or off.
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}

ON_THE_HEAD: Mapping[str, str] = {
    # Kept on disk, a GCS that is started again is the same cluster; in memory it is another one.
    "RAY_gcs_storage": "rocksdb",
    "RAY_gcs_storage_path": GCS_FOLDER,
}
