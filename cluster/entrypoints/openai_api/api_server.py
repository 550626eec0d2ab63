"""`python -m shoal.entrypoints.openai.api_server ...` is `shoal serve ...`.

pyproject.toml maps that name to this folder, so the import is absolute.
"""

from __future__ import annotations

import sys

from shoal.cluster.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "serve")
    main()
