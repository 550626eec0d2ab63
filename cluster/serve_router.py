"""The ear at Ray Serve: learns in the gateway's process which replicas there are."""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from . import membership  # Serve pickles what this module holds by value, but modules by name


class MemberRouter(RequestRouter):
    """Passes on what Serve knows. Requests do not come this way: they take the direct links."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """See RequestRouter."""
        super().update_replicas(replicas)
        members = []
        for replica in replicas:
            at = replica.replica_metadata
            name = replica.replica_id.unique_id
            members.append(membership.Member(name, at["model"], at["host"], at["port"]))
        membership.replicas.publish(str(self._deployment_id), tuple(members))

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """See RequestRouter; for control calls, which any replica may answer."""
        return [candidate_replicas]
