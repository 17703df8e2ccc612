"""The command line, for those who start it as a module: torchrun -m innervision evaluate …"""

import sys

from innervision.cli import main

if __name__ == "__main__":
    sys.exit(main())
