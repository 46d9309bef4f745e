"""A change of one value in another program's file changes the bytes of that value and no others.

`parse` is strict: what it does not understand for certain it refuses, with the place. Every edit is read again and
compared with what was meant before it is given out, so a wrong cut is an error and never a broken file.
"""

from aegis_daemon.clients.documents.document import MISSING, Document, parse
from aegis_daemon.clients.documents.tree import Format, Path, Unchangeable, Unreadable, dotted, equal

__all__ = ["MISSING", "Document", "Format", "Path", "Unchangeable", "Unreadable", "dotted", "equal", "parse"]
