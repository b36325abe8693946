"""Two tasks with a cluster: one writes, the other follows the log, over the loss of leaders."""

import asyncio

from zmqraft import LogEntry
from zmqraft.asyncio import ZmqRaftClient, ZmqRaftSubscriber

URLS = ["127.0.0.1:8047", "127.0.0.1:8147", "127.0.0.1:8247"]
SECRET = "name of the cluster"


async def follow(last_index: int) -> None:
    async with ZmqRaftSubscriber(URLS, secret=SECRET, last_index=last_index) as subscriber:
        async for entry in subscriber:  # every entry once, in order
            if isinstance(entry, LogEntry) and entry.is_state:
                print(entry.index, entry.data.decode())
                if entry.data == b"end":
                    return


async def main() -> None:
    async with ZmqRaftClient(URLS, secret=SECRET, deadline_s=30) as client:
        following = asyncio.create_task(follow(await client.read_index()))
        await asyncio.gather(*(client.request_update(None, b"number %d" % number) for number in range(1000)))
        await client.request_update(None, b"end")
        await following


asyncio.run(main())
