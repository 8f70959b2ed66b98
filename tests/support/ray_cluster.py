"""A Ray cluster on the loopback addresses of this machine, one a test run."""

import os
import uuid
from typing import Any

from helios_serve.options.workers import Resources

# Read when Ray is imported, hence before anything else imports it.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = str(uuid.uuid4())
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

ZONES = ("a", "b")
NODE = {"num_cpus": 8, "num_gpus": 1}


class RayCluster:
    """A cluster with a node in each zone, with a fake GPU. The node in zone a is the head."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        # Ray takes 127.0.0.1 for its outer address.
        self._addresses = (f"127.0.0.{host}" for host in range(2, 255))
        self._nodes: dict[str, Any] = {}
        self.add_node("a", include_dashboard=False)
        self.add_node("b")

    @property
    def address(self) -> str:
        address: str = self._cluster.address
        return address

    def add_node(self, zone: str, **options: Any) -> None:
        self._nodes[zone] = self._cluster.add_node(
            node_ip_address=next(self._addresses), labels={"zone": zone}, **NODE, **options
        )

    def kill_node(self, zone: str) -> None:
        """Kill a node without any shutdown."""
        self._cluster.remove_node(self._nodes.pop(zone), allow_graceful=False)

    def zone_of(self, node: str) -> str:
        """Return the zone of a node, given the beginning of its id."""
        for zone, started in self._nodes.items():
            if started.node_id.startswith(node):
                return zone
        raise KeyError(node)

    def shutdown(self) -> None:
        self._cluster.shutdown()


def half_a_gpu(**labels: str) -> Resources:
    """Return resources with which two workers fit on a node.

    Ray limits torch to as many threads as there are CPUs.
    """
    return Resources(num_cpus=2, num_gpus=0.5, labels=labels)
