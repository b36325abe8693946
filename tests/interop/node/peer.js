// A peer: node peer.js CONFIG ID, with a configuration file in JSON as `zmqraft run` takes it. One that is not among the
// peers there joins them, and has `router.bind` and `broadcast.url`.
'use strict';

const fs = require('fs');
const raft = require('zmq-raft');
const {tell, serve} = require('./lines');

const [, , file, id] = process.argv;
const section = JSON.parse(fs.readFileSync(file, 'utf8')).raft;
const member = section.peers.find((peer) => peer.id === id);

let closing = false;

const fail = (error) => {
  // zmq-raft may stumble over its own socket when it is closed while it works on a message.
  if (closing) process.exit(0);
  tell({event: 'failed', message: error.stack});
  process.exitCode = 1;
  process.exit();
};

raft.server.builder.build({
  ...section,
  id,
  broadcast: member ? {...section.broadcast, url: member.pub} : section.broadcast,
  webmonitor: {enable: false},
  listeners: {
    error: fail,
    state: (state, term) => tell({event: 'state', state: state.description, term}),
    config: null,
    close: null,
  },
}).then((peer) => {
  serve({}, () => {
    closing = true;
    peer.close().then(() => process.exit(0), fail);
  });
  tell({event: 'ready', url: peer.url});
}, fail);
