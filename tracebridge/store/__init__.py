"""The store: sole owner of the SQLite file.

Everything that must happen together happens in one transaction, and a commit is on the disk when
it returns: the spool file it came from may then be deleted.
"""

from __future__ import annotations

from tracebridge.store.calls import Calls, parse_call
from tracebridge.store.database import DamagedStoreError, StoreError, damaged
from tracebridge.store.foreign import ForeignRow, ForeignSpans
from tracebridge.store.forgetting import Forgetting, Forgotten
from tracebridge.store.outbox import SinkRow, parse_outbox_row
from tracebridge.store.rescue import Rescue
from tracebridge.store.schema import MIGRATIONS
from tracebridge.store.sightings import SightingGroup, parse_sighting
from tracebridge.store.sums import Sums
from tracebridge.store.tables import CHANGED, FILE
from tracebridge.store.turns import TURNS_PER_PAGE, TurnRow, Turns, parse_span

__all__ = [
    "CHANGED",
    "FILE",
    "MIGRATIONS",
    "TURNS_PER_PAGE",
    "DamagedStoreError",
    "ForeignRow",
    "Forgotten",
    "SightingGroup",
    "SinkRow",
    "Store",
    "StoreError",
    "TurnRow",
    "damaged",
    "parse_call",
    "parse_outbox_row",
    "parse_sighting",
    "parse_span",
]


class Store(Calls, ForeignSpans, Turns, Sums, Forgetting, Rescue):
    """Open the store below *home*, making it or bringing it up to date where needed."""
