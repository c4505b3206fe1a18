"""Whose files are, where a system has several users in one folder."""

from __future__ import annotations

import os


def set_private_umask() -> None:
    """Make every file that this process creates from now on readable by its owner alone.

    On Windows a file inherits the permissions of its folder, and the mask changes nothing; a user's temporary folder is
    that user's alone there.
    """
    os.umask(0o077)


def is_owned_by_current_user(found: os.stat_result) -> bool:
    """Whether a file belongs to the user of this process; True on Windows, which does not number its users."""
    return not hasattr(os, "getuid") or found.st_uid == os.getuid()
