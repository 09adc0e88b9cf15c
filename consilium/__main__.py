"""`python -m consilium`."""

import sys

from consilium.cli.main import main

sys.exit(main())
