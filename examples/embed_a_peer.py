"""A program with a peer in it, and a state machine of its own: who is in which room."""

import asyncio
import json

from zmqraft import DataSettings, EntryBatch, PeerAddress, Settings
from zmqraft.asyncio import StateMachineBase, build_peer


class Rooms(StateMachineBase):
    def __init__(self) -> None:
        self.rooms: dict[str, str] = {}

    async def apply_entries(self, entries: EntryBatch, term: int) -> list[str | None]:
        return [self.enter(*json.loads(entry.data)) if entry.is_state else None for entry in entries]

    def enter(self, who: str, room: str) -> str | None:
        """Returns the room that was left."""
        left = self.rooms.get(who)
        self.rooms[who] = room
        return left


async def main() -> None:
    settings = Settings(
        id="1",
        secret=b"name of the cluster",
        peers=(PeerAddress("1", "tcp://127.0.0.1:8047"),),
        data=DataSettings("/tmp/zmqraft-rooms"),
    )
    machine = Rooms()
    async with build_peer(settings, state_machine=lambda _: machine) as peer:
        await peer.update(json.dumps(["Ada", "library"]).encode())
        left = await peer.update(json.dumps(["Ada", "garden"]).encode())  # what `enter` returned, here
        await peer.read_index()  # from now on `rooms` has everything that was acknowledged, to anybody, before
        print(f"Ada left the {left} for the {machine.rooms['Ada']}")


asyncio.run(main())
