"""Metrics agree with the videos that were generated."""

import platform
import re
from pathlib import Path

import httpx2 as httpx
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from helios_serve.metrics import Metrics
from tests.support.api import SHORT, openai

ROOT = Path(__file__).parents[3]
CPU = f"{platform.machine()} CPU"
OF_SERVER = ("helios:event_loop_tasks", "helios:object_store_")
"""Our only metrics without the label of a model."""
Samples = dict[tuple[str, str], float]


def scrape(http: httpx.Client) -> Samples:
    """Return the values, by name and by labels other than the model."""
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "model_name"}
            is_of_model = sample.name.startswith("helios:") and not sample.name.startswith(
                OF_SERVER
            )
            assert sample.labels.get("model_name") == ("nano" if is_of_model else None)
            samples[sample.name, ",".join(labels.values())] = sample.value
    return samples


def test_counts_are_those_of_what_was_made(http: httpx.Client, client: openai.OpenAI) -> None:
    """40 frames are two chunks, of three stages with two steps each."""
    before = scrape(http)
    video = http.post("/v1/videos", json={"prompt": "x", "num_frames": 3300, "size": "64x64"})
    http.post(f"/v1/videos/{video.json()['id']}/cancel")
    # Last, so that no step is counted while the metrics are read.
    client.videos.create_and_poll(prompt="a dog runs", poll_interval_ms=100, **SHORT)
    after = scrape(http)

    def grown(name: str, labels: str = "") -> float:
        key = (f"helios:{name}", labels)
        return after[key] - before.get(key, 0.0)

    assert grown("requests_total", "completed") == grown("requests_total", "cancelled") == 1
    assert grown("e2e_request_latency_seconds_count") == 1
    assert grown("time_to_first_chunk_seconds_count") >= 1
    assert grown("inter_chunk_latency_seconds_count") == grown("chunk_rtf_count") >= 1
    assert grown("frames_generated_total") == 40
    for stage in "012":
        assert grown("denoise_step_seconds_count", stage) >= 4
    steps = sum(grown("denoise_step_seconds_count", stage) for stage in "012")
    assert grown("step_batch_sessions_sum") >= steps == grown("step_batch_tokens_count")
    assert grown("vae_decode_seconds_count") >= 2
    assert grown("request_queue_time_seconds_sum") < grown("e2e_request_latency_seconds_sum") + 1
    assert after["helios:worker_up", "local-0"] == 1
    assert after["helios:worker_info", f"cpu,{CPU},reference,,local-0"] == 1
    assert after["helios:history_blocks", ""] > after["helios:history_blocks_used", ""] >= 0
    assert after["helios:num_sessions", "waiting"] == 0
    assert after["helios:event_loop_tasks", ""] >= 1


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    families = list(Metrics().registry.collect())
    ours = {family.name for family in families if family.name.startswith("helios:")}
    assert set(re.findall(r"`(helios:\w+)", text)) == ours
    others = {family.name for family in families} - ours
    http = {name for name in others if name.startswith("http_")}
    assert http <= set(re.findall(r"`(\w+)`", text))
    assert all(name.startswith(("process_", "python_")) for name in others - http)
    for family in families:
        is_total = family.name.endswith("_total")
        assert not is_total, "prometheus_client adds _total to counters, and only they have it"
    assert not any(family.name.startswith("helios") for family in REGISTRY.collect())
