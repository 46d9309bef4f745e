"""Run as a file (`python -I -S …/aegis_shim/__main__.py`, 6 ms faster than as a directory) or with `-m aegis_shim`."""

import sys

if not __package__:
    # Behind the standard library, so that nothing installed beside us can stand in for a part of it.
    sys.path.append(__file__.rpartition("/")[0] + "/..")

from aegis_shim.wrap import main

if __name__ == "__main__":
    main(sys.argv[1:])
