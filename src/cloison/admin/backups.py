"""The methods of backups (Admin API notes, section 14): names that clients know, until there are backups."""

from __future__ import annotations

from cloison.admin.methods import Answer, Call, Desk, Dest, Method, Need, Scope
from cloison.errors import NotMadeYet


async def refuse(_desk: Desk, call: Call) -> Answer:
    raise NotMadeYet(f"{call.method} cannot be answered: this version makes no backups")


METHODS = tuple(
    Method(f"admin.backup.{verb}", Dest.DOM0, Need.REQUIRED, Need.NONE, scope, doc, refuse)
    for verb, scope, doc in (
        ("Info", Scope.LOCAL_RO, "What a backup by this profile would hold (not there yet)."),
        ("Execute", Scope.GLOBAL_X, "Make the backup of a profile (not there yet)."),
        ("Cancel", Scope.GLOBAL_X, "Stop making the backup of a profile (not there yet)."),
    )
)
