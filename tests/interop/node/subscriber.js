// A subscriber: node subscriber.js cluster|peer OPTIONS URL...; every entry, or chunk of a snapshot, is an event.
'use strict';

const raft = require('zmq-raft');
const {describeItem, serve, tell, toBytes} = require('./lines');

const [, , kind, options, ...urls] = process.argv;
const {lastIndex, ...settings} = JSON.parse(options);

let stream;
if (kind === 'cluster') {
  stream = new raft.client.ZmqRaftSubscriber(urls, {...settings, lastIndex});
} else {
  const peer = new raft.client.ZmqRaftPeerSub(urls[0], settings);
  peer.on('error', (error) => tell({event: 'error', message: String(error)}));
  stream = peer.foreverEntriesStream(lastIndex);
}
stream
  .on('data', (item) => tell({event: 'item', item: describeItem(item)}))
  .on('error', (error) => tell({event: 'error', message: String(error)}))
  .on('end', () => tell({event: 'end'}));

serve({
  // By the writing side of the stream.
  write: ({id, data}) => new Promise((resolve, reject) => {
    const request = new raft.common.LogEntry.UpdateRequest(toBytes(data), id);
    stream.write(request, (error) => error ? reject(error) : resolve());
  }),
});
