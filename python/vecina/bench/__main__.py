# SPDX-License-Identifier: MIT
import sys

from vecina.bench import main

sys.exit(main())
