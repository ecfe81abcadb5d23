"""What the server of `tests.processes` does once, when all else is imported, so that no process does it anew."""

import atexit
import weakref

from torch._dynamo.utils import dump_compile_times
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("gpt2")  # compiles a thousand regular expressions, and keeps them

# A process ends what it has begun. To end what the server has imported takes longer than many tests.
atexit.unregister(dump_compile_times)
for finalizer in [*weakref.finalize._registry]:  # type: ignore[attr-defined]
    finalizer.atexit = False
