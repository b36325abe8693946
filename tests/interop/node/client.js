// Clients of a cluster, or of one peer: `open` makes the one client of this process.
'use strict';

const raft = require('zmq-raft');
const {describeEntry, describeItem, fromBytes, newRequestId, serve, toBytes} = require('./lines');

const CLIENTS = {
  cluster: (urls, options) => new raft.client.ZmqRaftClient(urls, options),
  peer: (urls, options) => new raft.client.ZmqRaftPeerClient(urls[0], options),
  // The same as a client of one peer, which can ask for the url of the broadcast as well.
  subscriber: (urls, options) => new raft.client.ZmqRaftPeerSub(urls[0], options),
};

let client = null;

// What `requestEntries` hands on: log entries and the index of the last one, or a chunk of the snapshot.
const describeReply = (status, content, lastIndex, offset, size, isLast, term) => Buffer.isBuffer(content)
  ? [{index: lastIndex, term, offset, size, chunk: fromBytes(content)}]
  : content.map((entry, position) => describeEntry(entry, lastIndex - content.length + 1 + position));

serve({
  open: ({kind, urls, options}) => { client = CLIENTS[kind](urls, options); },

  close: () => client.close(),

  config: ({timeout}) => client.requestConfig(timeout),

  info: ({timeout, anyPeer}) => client instanceof raft.client.ZmqRaftClient
    ? client.requestLogInfo(anyPeer, timeout)
    : client.requestLogInfo(timeout),

  broadcastUrl: ({timeout}) => client.requestBroadcastStateUrl(timeout),

  update: ({id, data, timeout}) => client.requestUpdate(id, toBytes(data), timeout),

  configUpdate: ({id, peers, timeout}) => client.configUpdate(id, peers, timeout),

  newId: () => newRequestId(),

  // Many updates [id, data], so many at a time on the way; their indexes in the same order.
  updates: async ({updates, inFlight, timeout}) => {
    const indexes = [];
    let next = 0;
    const work = async () => {
      while (next < updates.length) {
        const mine = next++;
        const [id, data] = updates[mine];
        indexes[mine] = await client.requestUpdate(id, toBytes(data), timeout);
      }
    };
    await Promise.all(Array.from({length: inFlight}, work));
    return indexes;
  },

  // By the callback; `stopAfter` replies it says that it has enough.
  entries: async ({previousIndex, count, stopAfter, snapshotOffset, timeout}) => {
    const items = [];
    let replies = 0;
    const receive = (...reply) => {
      items.push(...describeReply(...reply));
      return ++replies !== stopAfter;
    };
    const complete = await client.requestEntries(previousIndex, count, receive, timeout, snapshotOffset);
    return {items, complete};
  },

  // By the stream.
  stream: async ({previousIndex, options}) => {
    const items = [];
    for await (const item of client.requestEntriesStream(previousIndex, options)) items.push(describeItem(item));
    return items;
  },
});
