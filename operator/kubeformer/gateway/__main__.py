"""`python -m kubeformer.gateway` runs the gateway."""

import sys

from kubeformer.gateway.main import main

sys.exit(main())
