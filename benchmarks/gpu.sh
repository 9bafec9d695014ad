#!/bin/sh
# Everything that docs/performance.md asks of a GPU: kernel tests in float16 and bfloat16, the demands, the page.
# From anywhere, in an environment with gate-screen[test] and triton; PYTHON names another interpreter.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
"$PYTHON" -m benchmarks.gpu --check
"$PYTHON" -m pytest -q tests/extraction -m ""
"$PYTHON" -m benchmarks.gpu "$@"
"$PYTHON" -m benchmarks.page
