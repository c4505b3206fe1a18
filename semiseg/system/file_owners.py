"""Owners and permissions of files in folders that several users share."""

from __future__ import annotations

import os


def set_private_umask() -> None:
    """Set the umask so that files created by this process are readable by their owner only.

    On Windows a file inherits the permissions of its folder, and the umask has no effect; there a user's temporary
    folder is private to that user.
    """
    os.umask(0o077)


def is_owned_by_current_user(found: os.stat_result) -> bool:
    """Return True if a file belongs to the user of this process; always True on Windows, which has no user IDs."""
    return not hasattr(os, "getuid") or found.st_uid == os.getuid()
