"""The whole line as a Ray job: `ray job submit --working-dir . -- python jobs/pipeline.py CONFIG`."""

import sys

from tunewright.pipeline import main

if __name__ == "__main__":
    sys.exit(main())
