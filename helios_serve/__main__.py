"""`python -m helios_serve` is the `helios-serve` command."""

import sys

from helios_serve.entrypoints.cli.main import main

sys.exit(main())
