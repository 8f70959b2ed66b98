"""OpenTelemetry spans, which are sent to a collector over OTLP/HTTP. Needs the extra `otel`."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from helios_serve.errors import InvalidRequestError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

Value = str | int | float | bool
PATH = "/v1/traces"
"""Path of a collector, by the OTLP specification, for an endpoint without one."""


class SpanEvent(NamedTuple):
    """Something that happened within a span, at `time` in Unix seconds."""

    name: str
    time: float
    attributes: Mapping[str, Value]


class Spans:
    """Makes spans and sends them in the background, in batches. Thread-safe.

    A trace's context travels as a W3C `traceparent`: in the header of a client's request, and in
    the stored request of a video, so that a trace continues after a restart. The environment
    variables of the SDK apply (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS).
    """

    def __init__(self, exporter: "SpanExporter") -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource({SERVICE_NAME: "helios-serve"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("helios_serve")

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator["Span"]:
        """A span of an HTTP request while the block runs, below the client's `traceparent`."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers)
        with self._tracer.start_as_current_span(
            "request", parent, kind=SpanKind.SERVER, record_exception=False
        ) as span:
            yield span

    def accept(self, video_id: str) -> str:
        """Record that a video is accepted, and return the `traceparent` of its further spans.

        The span belongs to the HTTP request that is being answered, if there is one.
        """
        attributes = {"helios.video.id": video_id}
        with self._tracer.start_as_current_span("accept", attributes=attributes) as span:
            context = span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def record(
        self,
        name: str,
        traceparent: str,
        *,
        start: float,
        end: float,
        attributes: Mapping[str, Value],
        events: Iterable[SpanEvent] = (),
        error: str | None = None,
    ) -> None:
        """Record a span that is over. `start` and `end` are Unix seconds."""
        from opentelemetry.trace import StatusCode

        span = self._tracer.start_span(
            name, parent_of(traceparent), attributes=attributes, start_time=nanoseconds(start)
        )
        for event in events:
            span.add_event(event.name, event.attributes, nanoseconds(event.time))
        if error is not None:
            span.set_status(StatusCode.ERROR)
        span.end(nanoseconds(end))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def open_spans(endpoint: str) -> Spans:
    """Return spans that are sent to `endpoint`, an http or https URL.

    Raises InvalidRequestError for another URL, or without the extra `otel`.
    """
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise InvalidRequestError(
            f"got --otlp-traces-endpoint {endpoint}, expected a URL such as http://localhost:4318",
            param="otlp-traces-endpoint",
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise InvalidRequestError(
            "got --otlp-traces-endpoint without the package opentelemetry: "
            "pip install 'helios-serve[otel]'",
            param="otlp-traces-endpoint",
        ) from error
    place = endpoint if url.path.strip("/") else f"{endpoint.rstrip('/')}{PATH}"
    return Spans(OTLPSpanExporter(endpoint=place))


def parent_of(traceparent: str) -> "Context":
    """Return the context in which spans are below `traceparent`."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


class Stopwatch:
    """Measures a block: `start` and `end` in Unix seconds."""

    def __enter__(self) -> "Stopwatch":
        self.start = time.time()
        return self

    def __exit__(self, *_: object) -> None:
        self.end = time.time()
