"""Upload files into one model of a registry: python upload.py PATH... [--to FOLDER]

modelfs made this copy. GRANT, right below, says for which model, until when, and how to get
another. It needs Python 3.9 and nothing else. It holds no key of the registry: it may list the
files of this model and write them, and the registry refuses it everything else.

PATH is a file or a folder. A folder is put under its own name, as `cp -r` does; with a slash at
its end (llama/) its content is put. What is there already with equal content is not sent again,
so a run that was cut off is gone on with by running it again. Symlinks inside folders are
skipped (--follow: what they point at is sent), and so are sockets, pipes, devices, and names that
modelfs keeps local.

Exit status: 0 every file is there, 1 some are not, 2 wrong usage, 3 the token has expired or is
refused, 4 the registry does not answer, 130 interrupted.
"""

from __future__ import annotations

import json
from typing import Any

# What this copy may do, written by modelfs. A token is in it: keep this file to yourself.
GRANT: dict[str, Any] = json.loads(r"""null""")
