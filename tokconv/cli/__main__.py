"""`python -m tokconv.cli`."""

import sys

from tokconv.cli.main import main

sys.exit(main())
