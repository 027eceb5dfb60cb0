"""``python -m cloison.daemon``."""

import sys

from cloison.daemon import main

sys.exit(main())
