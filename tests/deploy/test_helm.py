"""The Helm chart, rendered by Helm itself (`make helm`)."""

import json
import os
import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.test_files import KUBERNETES, is_accepted
from tests.support.balancers import DEPLOY, ROOT

CHART = DEPLOY / "helm"
HELM = ROOT / "build" / "helm"
PROGRAM = """
import json, sys
import helm_python
chart, values = sys.argv[1], json.loads(sys.argv[2])
with helm_python.Chart.load(chart) as loaded:
    try:
        loaded.validate_schema(values)
        rendered = loaded.render(values, name="helios", namespace="default")
    except helm_python.HelmError as error:
        sys.exit(str(error))
print(json.dumps({"lint": helm_python.lint(chart, values, strict=True), "rendered": rendered}))
"""
ALL_VALUES = {
    "cells": 5,
    "gpus": 0,
    "image": {"tag": "mine"},
    "args": ["--retention=7d"],
    "objectStore": {
        "url": "s3://bucket/prefix",
        "endpoint": "http://minio:9000",
        "serving": "proxy",
        "secret": "aws",
    },
    "serviceAccount": "helios",
    "storage": {"className": "fast", "size": "1Ti"},
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
}

pytestmark = pytest.mark.slow


def helm(values: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, CHART, json.dumps(values)],
        env=os.environ | {"PYTHONPATH": str(HELM)},
        capture_output=True,
        text=True,
        check=False,
    )


def manifests(values: dict[str, Any]) -> dict[str, Any]:
    """The documents by kind; each is valid, and the linter has nothing to say but of an icon."""
    done = helm(values)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert output["lint"]["errors"] == []
    assert [item["error"] for item in output["lint"]["messages"]] == ["icon is recommended"]
    documents = [yaml.safe_load(text) for text in output["rendered"].values() if text.strip()]
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    return {document["kind"]: document for document in documents}


def container_of(found: dict[str, Any]) -> dict[str, Any]:
    (container,) = found["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    made: dict[str, Any] = container
    return made


def test_the_chart_makes_cells_that_the_server_accepts() -> None:
    found = manifests({})
    assert found.keys() == {"Service", "PodDisruptionBudget", "StatefulSet"}
    container = container_of(found)
    assert is_accepted(container["args"])
    assert "--object-store" not in str(container["args"])
    assert container["image"].endswith(":v0.2.0-cuda")
    assert container["resources"]["limits"] == {"memory": "96Gi", "nvidia.com/gpu": "1"}
    labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["Service"]["spec"]["selector"],
        found["StatefulSet"]["spec"]["selector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_every_value_is_used() -> None:
    found = manifests(ALL_VALUES)
    container = container_of(found)
    assert is_accepted(container["args"])
    assert container["args"][-5:] == [
        "--object-store=s3://bucket/prefix",
        "--object-store-serving=proxy",
        "--object-store-endpoint=http://minio:9000",
        "--object-store-drop-local",
        "--retention=7d",
    ]
    assert container["image"].endswith(":mine")
    assert container["envFrom"] == [{"secretRef": {"name": "aws"}}]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    cells = found["StatefulSet"]["spec"]
    pod = cells["template"]["spec"]
    assert cells["replicas"] == 5
    assert (pod["serviceAccountName"], pod["nodeSelector"]) == ("helios", {"gpu": "h100"})
    assert pod["tolerations"] == ALL_VALUES["tolerations"]
    claim = cells["volumeClaimTemplates"][0]["spec"]
    assert claim["storageClassName"] == "fast"
    assert claim["resources"]["requests"]["storage"] == "1Ti"


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"cells": 0}, "/cells"),
        ({"cell": 3}, "cell"),
        ({"objectStore": {"url": "http://bucket"}}, "/objectStore/url"),
        ({"objectStore": {"serving": "both"}}, "/objectStore/serving"),
    ],
)
def test_other_values_are_refused(values: dict[str, Any], place: str) -> None:
    done = helm(values)
    assert done.returncode == 1
    assert place in done.stderr
