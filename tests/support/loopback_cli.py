"""The `helios-serve` command for tests of outbound requests.

It accepts loopback addresses as public, and retries webhooks after a moment.
"""

import sys
from functools import partial
from unittest import mock

from helios_serve.entrypoints.cli.main import main
from helios_serve.entrypoints.http import app
from helios_serve.service.outbound import outbound
from helios_serve.service.webhooks import webhooks

DELAYS = 1000 * (0.5,)

if __name__ == "__main__":
    assert app, "what names the classes below has to be imported before they are replaced"
    on_loopback = partial(outbound.Outbound, is_allowed=lambda address: address.is_loopback)
    soon = partial(webhooks.Webhooks, delays=DELAYS)
    with (
        mock.patch.object(outbound, "Outbound", on_loopback),
        mock.patch.object(webhooks, "Webhooks", soon),
    ):
        sys.exit(main())
