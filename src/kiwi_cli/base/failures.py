"""Why the system refused to write, as one thing to do next."""

from __future__ import annotations

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def writing_hint(error: OSError) -> str:
    """What helps against a failure to write a file or folder."""
    if error.errno in FULL:
        return "free some space, or choose a folder on another disk"
    if error.errno in FORBIDDEN:
        return "choose a folder that you may write to"
    if error.errno == errno.EFBIG:
        return "this disk takes no file of that size (FAT32 ends at 4 GB): choose a folder on another disk"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "something on the way to it is a file and no folder: choose another path"
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    return "choose another folder"
