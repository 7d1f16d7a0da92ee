"""`python -m kubeformer.app` runs the operator."""

import sys

from kubeformer.app.main import main
from kubeformer.app.planners import controllers

sys.exit(main(controllers))
