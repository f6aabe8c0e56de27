"""`modelfs` whose doctor has other limits, before its own arguments.

    examine.py limit=2 orphan-age=0 dead-after=0 old-probe=0 systemd=FOLDER -- ARGUMENTS

limit is how long a check may take; orphan-age, dead-after and old-probe are the ages in seconds
from which a multipart upload, a node and a probe are taken for left behind; systemd is a folder
that is there where systemd runs.
"""

import functools
import sys
from pathlib import Path

from modelfs import cli
from modelfs.doctor import bucket, remains, running, service, uploads


def main() -> int:
    end = sys.argv.index("--")
    said = dict(word.split("=", 1) for word in sys.argv[1:end])
    del sys.argv[1 : end + 1]
    if "limit" in said:
        running.run = functools.partial(running.run, limit_s=float(said["limit"]))
    uploads.ORPHAN_AGE_S = float(said.get("orphan-age", uploads.ORPHAN_AGE_S))
    remains.DEAD_AFTER_S = float(said.get("dead-after", remains.DEAD_AFTER_S))
    bucket.OLD_PROBE_S = float(said.get("old-probe", bucket.OLD_PROBE_S))
    service.SYSTEMD = Path(said.get("systemd", service.SYSTEMD))
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
