"""``python -m edgetqs``."""

import sys

from edgetqs.cli import main

sys.exit(main())
