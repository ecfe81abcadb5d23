"""How much of the machine this process may use; a job scheduler or a container often grants less than there is."""

import os
from pathlib import Path


def processors() -> int:
    """How many processors."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """How many bytes of memory."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [8 << 30]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(file).read_text() if Path(file).is_file() else ""
        sizes += [int(limit)] if limit.strip().isdigit() else []
    return min(sizes)
