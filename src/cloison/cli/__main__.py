"""``python -m cloison.cli``."""

import sys

from cloison.cli import main

sys.exit(main())
